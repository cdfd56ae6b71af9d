"""A library of kernels compiled ahead, opened with ctypes alone: what a device does."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.errors import TruncatedBundle, UnknownTarget
from edge.target import this_machine

# ELF's number of a processor, by architecture.
_MACHINES = {"x86_64": 62, "aarch64": 183}
_HEADER_BYTES = 64


class Library:
    """Machine code of a file in this process, where it stays.

    Raises TruncatedBundle where the file is missing, short or no library, and UnknownTarget where
    it is for another processor, or the system does not let it run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        _check(path)
        try:
            self._library = ctypes.CDLL(str(path.resolve()))
        except OSError as error:
            raise UnknownTarget(
                f"the system does not take {error}",
                "copy the bundle to where programs may run, such as your home folder: on a "
                "phone's shared storage they may not; or use --target ref",
            ) from None

    def address(self, name: str) -> int:
        """Address of a public function. Raises KeyError."""
        try:
            function = self._library[name]
        except AttributeError:
            raise KeyError(f"{self._path.name} has no {name}") from None
        found = ctypes.cast(function, ctypes.c_void_p).value
        assert found is not None
        return found

    def function(self, name: str, *arguments: Any) -> Callable[..., None]:
        """A public function for ctypes; it runs without the interpreter's lock."""
        return ctypes.CFUNCTYPE(None, *arguments)(self.address(name))


def _check(path: Path) -> None:
    """Look at the ELF header: a short file, mapped, would end the process when it is touched."""
    cure = "run `lutra verify`, or convert again"
    if not path.is_file():
        raise TruncatedBundle(f"{path}: not there", cure)
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    size = path.stat().st_size
    if len(header) < _HEADER_BYTES or header[:5] != b"\x7fELF\x02":
        raise TruncatedBundle(f"{path}: {size} bytes that are no 64-bit library", cure)
    (machine,) = struct.unpack_from("<H", header, 18)
    (sections,) = struct.unpack_from("<Q", header, 40)
    entry_bytes, entries = struct.unpack_from("<HH", header, 58)
    if size < sections + entries * entry_bytes:
        need = sections + entries * entry_bytes
        raise TruncatedBundle(f"{path}: {size} bytes, its header says {need}", cure)
    arch = this_machine().arch
    if machine != _MACHINES.get(arch):
        made = {number: name for name, number in _MACHINES.items()}.get(machine, "another machine")
        raise UnknownTarget(f"{path} is for {made}, this machine is {arch}", "use `--target auto`")
