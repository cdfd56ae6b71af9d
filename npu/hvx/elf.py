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
    """The Hexagon version that a library is for; 0 where it is none, or not a whole one.

    The table of sections, which the header leads to, is the last that is in a library.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
        size = file.seek(0, 2)
    if len(head) < _HEADER_BYTES or head[:5] != b"\x7fELF\x01":
        return 0
    (machine,) = struct.unpack_from("<H", head, 18)
    sections, flags = struct.unpack_from("<2I", head, 32)
    entry_bytes, entries = struct.unpack_from("<2H", head, 46)
    if machine != _HEXAGON or size < sections + entries * entry_bytes:
        return 0
    return int(f"{flags & 0xFF:x}")
