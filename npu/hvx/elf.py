"""The skel library as a file: its name, and what its header says."""

from __future__ import annotations

import struct
from pathlib import Path

# ELF's number of Hexagon; its flags hold the version as two hexadecimal digits.
_HEXAGON = 164
_HEADER_BYTES = 52


def file_name(version: int) -> str:
    """What the library of a version is called on a device."""
    return f"liblutra_v{version}_skel.so"


def version_of(path: Path) -> int:
    """The Hexagon version that a library is for; 0 where it is none."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if len(head) < _HEADER_BYTES or head[:5] != b"\x7fELF\x01":
        return 0
    (machine,) = struct.unpack_from("<H", head, 18)
    (flags,) = struct.unpack_from("<I", head, 36)
    return int(f"{flags & 0xFF:x}") if machine == _HEXAGON else 0
