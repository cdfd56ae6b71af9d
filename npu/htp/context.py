"""What a context binary says of itself: the SoC and the HTP version that it was made for.

The format is not published. A FlatBuffers table follows the first 40 bytes, and its length is in
byte 16; the SoC's number stands near its beginning and the HTP's version in its last word. That was
found by compiling for all SoCs of `npu.htp.socs`, and holds for the binaries of QNN 2.51.
"""

from __future__ import annotations

import struct
from pathlib import Path

from edge.errors import NpuRefused

_LENGTH_AT, _TABLE_AT, _SOC_AT = 16, 40, 188


def read_header(path: Path) -> tuple[int, int]:
    """SoC number and HTP version of a context binary. Raises NpuRefused where it is too short."""
    with path.open("rb") as file:
        head = file.read(_SOC_AT + 4)
        if len(head) == _SOC_AT + 4:
            (length,) = struct.unpack_from("<Q", head, _LENGTH_AT)
            (soc,) = struct.unpack_from("<I", head, _SOC_AT)
            if 4 <= length <= path.stat().st_size - _TABLE_AT:
                file.seek(_TABLE_AT + length - 4)
                return soc, struct.unpack("<I", file.read(4))[0]
    raise NpuRefused(f"{path}: no context binary", "convert again")


def check_header(path: Path, soc: int, version: int) -> None:
    """Raises NpuRefused where a binary is for another SoC or HTP version than was asked for."""
    found = read_header(path)
    if found != (soc, version):
        raise NpuRefused(
            f"{path}: made for SoC {found[0]}, HTP v{found[1]}; need SoC {soc}, HTP v{version}",
            "convert again; if it stays, report it with the versions that lutra doctor prints",
        )
