"""A phone's NPU as a device for decode steps: memory that both processors see, kernels by FastRPC.

Addresses are numbers of one space, in which every shared buffer has a range of its own; what is
sent to the NPU are references to buffers, and offsets into them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import CallRefused
from npu.hvx.fastrpc import Buffer, Session
from npu.hvx.isa import VECTOR_BYTES
from npu.hvx.lowering import Call

# Room is asked for in pieces of at least this much, and a part of what there is: a session keeps a
# limited number of buffers.
_LEAST_BYTES = 4 << 20
_SHARE = 4

# The most that the driver's allocator takes, a signed number of 32 bits.
_MOST_BYTES = (1 << 31) - 1

# Where a buffer's range of addresses begins: 0 is no address.
_PAGE = 1 << 16

_FILE_PIECE_BYTES = 1 << 24


class PhoneDevice:
    """Memory and kernels of an open session, which it closes. See `npu.hvx.lowering.Device`.

    Raises CallRefused where the driver has no more memory, or the skel refuses.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._buffers: list[Buffer] = []
        self._starts: list[int] = []
        self._references: list[int] = []
        self._next = _PAGE
        self._free = 0, 0

    def allocate(self, byte_count: int) -> int:
        """Address of memory, all zeros, where vectors may be."""
        size = -(-max(byte_count, 1) // VECTOR_BYTES) * VECTOR_BYTES
        at, left = self._free
        if left < size:
            taken = sum(buffer.byte_count for buffer in self._buffers)
            left = max(size, min(max(_LEAST_BYTES, taken // _SHARE), _MOST_BYTES))
            at = self._add(left, writable=True)
            self.bytes_at(at, left)[:] = 0
        self._free = at + size, left - size
        return at

    def map_file(self, path: Path) -> int:
        """Address of a file's content, read into shared memory once.

        Behind it are two vectors more, since the last one of an array may be read whole.
        """
        size = path.stat().st_size
        at = self._add(size + 2 * VECTOR_BYTES, writable=False)
        content = self.bytes_at(at, size)
        with path.open("rb") as file:
            for start in range(0, size, _FILE_PIECE_BYTES):
                file.readinto(content[start : start + _FILE_PIECE_BYTES].data)
        return at

    def write(self, address: int, values: NDArray[np.generic]) -> None:
        self.bytes_at(address, values.nbytes)[:] = (
            np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        )

    def read(self, address: int, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        dtype = np.dtype(kind)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        return self.bytes_at(address, size).copy().view(dtype).reshape(shape)

    def prepare(self, calls: Sequence[Call]) -> Request:
        return Request(self, calls)

    def close(self) -> None:
        """End the session, and give all memory back."""
        self.session.close()
        while self._buffers:
            self._buffers.pop().free()

    def bytes_at(self, address: int, byte_count: int) -> NDArray[np.uint8]:
        """The memory itself."""
        index = int(np.searchsorted(self._starts, address, "right")) - 1
        return self._buffers[index].array(np.uint8, (byte_count,), address - self._starts[index])

    def places(self, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
        """Addresses as the NPU knows them: references, and above them offsets; 0 stays."""
        index = np.maximum(np.searchsorted(self._starts, addresses, "right") - 1, 0)
        offsets = addresses - np.array(self._starts, np.int64)[index]
        made = np.array(self._references, np.int64)[index] | offsets << 32
        return np.where(addresses == 0, 0, made)

    def _add(self, byte_count: int, *, writable: bool) -> int:
        """A new buffer, attached; returns its first address."""
        if byte_count > _MOST_BYTES:
            raise CallRefused(
                f"{byte_count:,} bytes in one piece, the NPU's driver gives up to {_MOST_BYTES:,}",
                "use a smaller model or fewer bits, or decode on the CPU",
            )
        buffer = self.session.allocate(byte_count)
        place = self.session.attach(buffer, writable=writable)
        start = self._next
        self._buffers.append(buffer)
        self._starts.append(start)
        self._references.append(place.reference)
        self._next = -(-(start + byte_count + 1) // _PAGE) * _PAGE
        return start


class Request:
    """Calls as the words of a request. See `npu.hvx.lowering.Prepared`, `npu.hvx.protocol`.

    Raises CallRefused where the skel has no such kernel, or one with other slots.
    """

    def __init__(self, device: PhoneDevice, calls: Sequence[Call]) -> None:
        self._device = device
        self._kernels = [call.kernel.name for call in calls]
        heads, memory = [], []
        for call in calls:
            signature = device.session.signature(call.kernel.name)
            if list(signature.slots) != list(call.arguments):
                raise CallRefused(
                    f"kernel {call.kernel.name} takes other arguments in this skel library",
                    "make it and run it with one version of Lutra: convert again",
                )
            heads.append(signature.index | call.threads << 32)
            memory += [kind in "rw" for kind in signature.slots.values()]
        counts = [1 + len(call.arguments) for call in calls]
        self._starts = np.cumsum([0, *counts])  # of calls, in words
        self._memory = np.array(memory)
        self._words = np.zeros(self._starts[-1], np.int64)
        self._words[self._starts[:-1]] = heads
        self._slots = np.delete(np.arange(len(self._words)), self._starts[:-1])

    def write(self, values: NDArray[np.int64]) -> None:
        self._words[self._slots] = values
        places = self._slots[self._memory]
        self._words[places] = self._device.places(values[self._memory])

    def run(self, first: int, last: int) -> None:
        words = self._words[self._starts[first] : self._starts[last]]
        request = np.concatenate([np.array([last - first], np.int64), words]).view(np.uint8)
        self._device.session.send(request, self._kernels[first:last])
