"""A phone's NPU from Python: its FastRPC library through ctypes, with the skel library behind it.

A `Session` is a process of the NPU's own, without a signature ("unsigned process domain"), as any
app may have. `Buffer`s are memory that both processors see: what NumPy writes there, kernels read
where it lies. Arrays of a call that are elsewhere are copied by the driver. On the device this
needs NumPy and ctypes alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import CallRefused, NpuUnavailable
from edge.target import HVX_VERSIONS
from npu.hvx import faults, protocol
from npu.hvx.elf import file_name, version_of
from npu.hvx.protocol import Call, Fault, Method, Place, Signature, scalars

LIBRARIES = ("libcdsprpc.so", "/vendor/lib64/libcdsprpc.so")

# FastRPC's numbers: the compute NPU, requests of its two control functions, kinds of memory.
_DOMAIN = 3
_CONTROL_UNSIGNED = 2
_GET_INFO, _ARCHITECTURE = 2, 6
_SYSTEM_HEAP, _UNCACHED = 25, 0
_MAP_BY_DESCRIPTOR = 2

_ANSWER_BYTES = 1024


class _Buffer(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class _Argument(ctypes.Union):
    _fields_ = (("buffer", _Buffer), ("handle", ctypes.c_uint64))


def load(names: Sequence[str] = LIBRARIES) -> ctypes.CDLL:
    """The phone's FastRPC library. Raises NpuUnavailable where there is none, or a part of it."""
    said = ""
    for name in names:
        try:
            return _declared(ctypes.CDLL(name))
        except OSError as error:
            said = str(error)
        except AttributeError as error:
            raise NpuUnavailable(f"{name}: {error}", "the phone's FastRPC is too old") from None
    raise NpuUnavailable(
        f"no FastRPC library {' or '.join(names)}: {said}",
        "run on a phone with a Snapdragon NPU; an app names it in its manifest's "
        "<uses-native-library>",
    )


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, word, size = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_size_t
    handle, number = ctypes.c_uint64, ctypes.c_int
    kinds: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "remote_session_control": (number, (word, pointer, word)),
        "remote_handle_control": (number, (word, pointer, word)),
        "remote_handle64_open": (number, (ctypes.c_char_p, ctypes.POINTER(handle))),
        "remote_handle64_invoke": (number, (handle, word, pointer)),
        "remote_handle64_close": (number, (handle,)),
        "rpcmem_alloc": (pointer, (number, word, number)),
        "rpcmem_free": (None, (pointer,)),
        "rpcmem_to_fd": (number, (pointer,)),
        "fastrpc_mmap": (number, (number, number, pointer, number, size, number)),
        "fastrpc_munmap": (number, (number, number, pointer, size)),
    }
    for name, (result, arguments) in kinds.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Buffer:
    """Memory that the NPU sees too. It is uncached: what is written is there for both.

    Raises CallRefused where the driver has no more.
    """

    def __init__(self, library: ctypes.CDLL, byte_count: int) -> None:
        self._library = library
        self.byte_count = byte_count
        self.address = library.rpcmem_alloc(_SYSTEM_HEAP, _UNCACHED, byte_count) or 0
        if not self.address:
            raise CallRefused(
                f"no {byte_count} bytes of memory shared with the NPU",
                "use a smaller model, or end other programs",
            )
        self.descriptor = int(library.rpcmem_to_fd(self.address))

    def array(self, kind: Any, shape: tuple[int, ...], offset: int = 0) -> NDArray[Any]:
        """The memory itself as an array, which must not be used after `free`."""
        dtype = np.dtype(kind)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        assert offset + size <= self.byte_count, (offset, size, self.byte_count)
        memory = (ctypes.c_uint8 * self.byte_count).from_address(self.address)
        return np.frombuffer(memoryview(memory), np.uint8, size, offset).view(dtype).reshape(shape)

    def free(self) -> None:
        """Give it back; a session that has it attached must be closed or detach it first."""
        if self.address:
            self._library.rpcmem_free(self.address)
            self.address = 0


class Session:
    """An open skel library on the NPU. `folder` holds the libraries, one for each version, of which
    the newest that the NPU runs is taken, up to version `newest`.

    Raises NpuUnavailable without a library for the NPU's version, CallRefused where the driver
    or the skel refuses.
    """

    def __init__(
        self, folder: Path, library: ctypes.CDLL | None = None, newest: int = HVX_VERSIONS[-1]
    ) -> None:
        self._library = library or load()
        self.handle = 0
        self._signatures: dict[str, Signature] = {}
        self._mapped: dict[int, Buffer] = {}
        self.version = self._device_version()
        self._path = _library_for(folder, min(self.version, newest))
        _search(folder)
        self._allow_unsigned()
        uri = f"file:///{self._path.name}?{protocol.ENTRY}&_modver=1.0&_dom=cdsp"
        opened = ctypes.c_uint64()
        failed = self._library.remote_handle64_open(uri.encode(), ctypes.byref(opened))
        self._check(failed, f"opening {self._path.name}")
        self.handle = opened.value
        try:
            self.contexts = self._described()
        except CallRefused:
            self.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach all buffers and end the process on the NPU."""
        if not self.handle:
            return
        for reference in list(self._mapped):
            with contextlib.suppress(CallRefused):
                self.detach(Place(reference))
        handle, self.handle = self.handle, 0
        self._library.remote_handle64_close(handle)

    # Memory.

    def allocate(self, byte_count: int) -> Buffer:
        """Memory that the NPU sees too."""
        return Buffer(self._library, byte_count)

    def attach(self, buffer: Buffer, *, writable: bool = False) -> Place:
        """Keep a buffer mapped on the NPU, for all calls to come; returns where it begins."""
        mapped = self._library.fastrpc_mmap(
            *(_DOMAIN, buffer.descriptor, buffer.address, 0),
            *(buffer.byte_count, _MAP_BY_DESCRIPTOR),
        )
        self._check(mapped, f"mapping {buffer.byte_count} bytes")
        asked = struct.pack("<3I", buffer.descriptor, buffer.byte_count, writable)
        answer = np.zeros(8, np.uint8)
        try:
            self.invoke(Method.ATTACH, [np.frombuffer(asked, np.uint8)], [answer[:4]])
        except CallRefused:
            self._unmap(buffer)
            raise
        (reference,) = struct.unpack("<I", answer[:4].tobytes())
        self._mapped[reference] = buffer
        return Place(reference)

    def detach(self, place: Place) -> None:
        """Undo `attach`."""
        self.invoke(Method.DETACH, [np.array([place.reference], np.uint32)], [])
        self._unmap(self._mapped.pop(place.reference))

    def _unmap(self, buffer: Buffer) -> None:
        unmap = self._library.fastrpc_munmap
        unmap(_DOMAIN, buffer.descriptor, buffer.address, buffer.byte_count)

    # Calls.

    def signature(self, kernel: str) -> Signature:
        """A kernel's slots. Raises CallRefused where the library has no such kernel."""
        if kernel not in self._signatures:
            answer = np.zeros(_ANSWER_BYTES, np.uint8)
            name = np.frombuffer(kernel.encode(), np.uint8)
            try:
                self.invoke(Method.FIND, [name], [answer])
            except CallRefused as error:
                raise CallRefused(
                    f"kernel {kernel}: {error.what}", error.cure, error.code
                ) from None
            self._signatures[kernel] = Signature.parse(answer.tobytes())
        return self._signatures[kernel]

    def run(
        self,
        calls: Sequence[Call],
        inputs: Sequence[NDArray[Any]] = (),
        outputs: Sequence[NDArray[Any]] = (),
    ) -> None:
        """Run kernels one after the other. All calls are checked before the first runs.

        Raises CallRefused, which names the call and the slot.
        """
        signatures = {call.kernel: self.signature(call.kernel) for call in calls}
        request = np.frombuffer(protocol.request(calls, signatures), np.uint8)
        self.send(request, [call.kernel for call in calls], inputs, outputs)

    def send(
        self,
        request: NDArray[np.uint8],
        kernels: Sequence[str],
        inputs: Sequence[NDArray[Any]] = (),
        outputs: Sequence[NDArray[Any]] = (),
    ) -> None:
        """Run a request that is made already, of calls to `kernels`. Raises as `run`."""
        try:
            self.invoke(Method.RUN, [request, *inputs], outputs)
        except CallRefused as error:
            place = self._explained(kernels)
            raise CallRefused(f"{place}{error.what}", error.cure, error.code) from None

    def invoke(
        self, method: int, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]
    ) -> None:
        """One call of any method, with arrays as they are: contiguous, outputs writable."""
        word = scalars(method, len(inputs), len(outputs))
        self.invoke_raw(word, self.arguments(inputs, outputs))

    def arguments(
        self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]
    ) -> ctypes.Array[Any]:
        """Arrays as FastRPC takes them; they must live until the call is over."""
        arguments = (_Argument * max(len(inputs) + len(outputs), 1))()
        for argument, array in zip(arguments, (*inputs, *outputs), strict=False):
            assert array.flags.c_contiguous, array.shape
            argument.buffer.at, argument.buffer.bytes = array.ctypes.data, array.nbytes
        return arguments

    def invoke_raw(self, word: int, arguments: ctypes.Array[Any]) -> None:
        """FastRPC's call itself."""
        failed = self._library.remote_handle64_invoke(self.handle, word, arguments)
        self._check(failed, self._path.name)

    # What the phone says.

    def _check(self, code: int, what: str) -> None:
        if code:
            raise faults.refusal(code, what)

    def _control(self, function: Any, request: int, *words: int) -> tuple[int, int]:
        """An error and the last word, which may have changed."""
        asked = (ctypes.c_uint32 * len(words))(*words)
        failed = function(request, ctypes.byref(asked), ctypes.sizeof(asked))
        return int(failed), int(asked[-1])

    def _device_version(self) -> int:
        """The NPU's Hexagon version: two digits, read as decimal ones."""
        control = self._library.remote_handle_control
        failed, word = self._control(control, _GET_INFO, _DOMAIN, _ARCHITECTURE, 0)
        self._check(failed, "asking the NPU's version")
        return int(f"{word & 0xFF:x}")

    def _allow_unsigned(self) -> None:
        control = self._library.remote_session_control
        failed, _ = self._control(control, _CONTROL_UNSIGNED, _DOMAIN, 1)
        if failed:
            reason = faults.refusal(failed, "an unsigned process on the NPU")
            raise CallRefused(
                reason.what, "this phone takes signed libraries only: use its CPU", reason.code
            )

    def _described(self) -> int:
        """Vector contexts. Raises CallRefused where the library speaks another protocol."""
        answer = np.zeros(4, np.uint32)
        self.invoke(Method.DESCRIBE, [], [answer])
        if answer[0] != protocol.VERSION:
            raise CallRefused(
                f"{self._path.name} speaks protocol {answer[0]}, this Lutra {protocol.VERSION}",
                "build the library anew and copy it",
            )
        return int(answer[2])

    def _explained(self, kernels: Sequence[str]) -> str:
        """Where the last fault was: the call, its kernel and slot, and the numbers."""
        answer = np.zeros(32, np.uint8)
        try:
            self.invoke(Method.EXPLAIN, [], [answer])
        except CallRefused:
            return ""
        fault, index, slot, _, found, need = struct.unpack("<4I2Q", answer.tobytes())
        if index >= len(kernels) or fault not in set(Fault):
            return ""
        name = kernels[index]
        slots = list(self.signature(name).slots)
        where = f", {slots[slot]}" if slot < len(slots) else ""
        return f"call {index}, {name}{where}: got {found}, need {need}: "


def _library_for(folder: Path, version: int) -> Path:
    """The newest library that the NPU runs. Raises NpuUnavailable."""
    fitting = [number for number in HVX_VERSIONS if number <= version]
    for number in sorted(fitting, reverse=True):
        path = folder / file_name(number)
        if path.is_file():
            found = version_of(path)
            if found != number:
                what = f"{path} is for Hexagon v{found}" if found else f"{path} is no whole library"
                raise NpuUnavailable(what, f"build one for v{number} and copy it")
            return path
    raise NpuUnavailable(
        f"{folder} has no skel library for Hexagon v{version} or below",
        f"build {file_name(max(fitting, default=version))} and copy it there (docs/hexagon.md)",
    )


def _search(folder: Path) -> None:
    """Have FastRPC look in a folder first. It separates folders by semicolons."""
    name = "ADSP_LIBRARY_PATH"
    folders = [str(folder.resolve())]
    folders += [
        each for each in os.environ.get(name, "").split(";") if each and each not in folders
    ]
    os.environ[name] = ";".join(folders)
