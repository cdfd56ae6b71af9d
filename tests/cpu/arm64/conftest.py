"""The emulated machine, and the libraries for it, made once for all tests of this folder.

The emulated Python is made by `sysroot.sh` beside this file; without it, these tests are skipped.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cpu.arm64.emulator import FLAGS, Emulator, compile_all, describe


@pytest.fixture(scope="session")
def arm64(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("LUTRA_ARM64") or cache / "lutra" / "arm64")
    if not (folder / "complete").is_file() or shutil.which("qemu-aarch64") is None:
        pytest.skip(f"no ARM64 Python at {folder}; run tests/cpu/arm64/sysroot.sh")
    roots = tmp_path_factory.mktemp("roots")
    for processor, flags in FLAGS.items():
        describe(folder / "root", roots / processor, flags)
    return Emulator(folder / "site", roots)


@pytest.fixture(scope="session")
def libraries(arm64: Emulator, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By target, a library with every kernel of every format, linked without any other."""
    del arm64  # without it there is no use for them
    pytest.importorskip("ziglang", reason="libraries are linked by it")
    return compile_all(tmp_path_factory.mktemp("libraries"))
