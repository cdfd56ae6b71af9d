"""From object code to a shared library, for any target, with the lld that ziglang brings.

The library calls nothing and needs no other: not the C library, on Linux or on Android.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from edge.errors import LutraError, MissingDependency

# Android devices with pages of 16 KiB refuse less than that; emulators want 64 KiB.
PAGE_BYTES = 64 * 1024

_OPTIONS = (
    "-shared",
    "--no-undefined",
    "--strip-all",
    "--build-id=none",
    "--hash-style=gnu",
    *("-z", f"max-page-size={PAGE_BYTES}"),
    *("-z", "noexecstack"),
    *("-z", "now"),
)


def shared_library(objects: Iterable[bytes], out: Path) -> None:
    """Link objects of any processor into the library `out`, which is replaced when whole.

    Raises MissingDependency without ziglang, LutraError where the linker refuses: an object uses a
    function that none has, or the disk is full.
    """
    if importlib.util.find_spec("ziglang") is None:
        raise MissingDependency("linking a library needs ziglang", 'pip install "lutra[ahead]"')
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made, sources = Path(folder) / "kernels.so", []
        for number, content in enumerate(objects):
            sources.append(Path(folder) / f"{number}.o")
            sources[-1].write_bytes(content)
        linker = [sys.executable, "-m", "ziglang", "ld.lld", *_OPTIONS]
        command = [*linker, "-o", str(made), *map(str, sources)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise LutraError(f"{out.name}: the linker refused: {done.stderr.strip()}")
        made.replace(out)
