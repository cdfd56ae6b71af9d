"""AMX on a processor without it: a library that performs what the processor refuses.

The rest of such code is AVX-512's, which the processor must have. What comes out is **emulated**:
it counts, how fast does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from cpu.native import refused_tiles
from edge.target import Machine, Target, this_machine

AMX = Target.parse("cpu:x86_64,amx")
BESIDE = Target.parse("cpu:x86_64,vnni")

# AMX implies it for the compiler; the other processors with AVX-512 have it since Zen 4.
_BFLOAT16 = "avx512_bf16"


def has_amx() -> bool:
    """Whether this machine runs such code by itself."""
    return not this_machine().mismatch(AMX) and not refused_tiles()


def require_avx512() -> None:
    """Skip where the code beside the tiles cannot run."""
    if reason := this_machine().mismatch(BESIDE):
        pytest.skip(f"no AMX, and emulating it needs AVX-512: {reason}")
    if _BFLOAT16 not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip(f"no AMX, and emulating it needs {_BFLOAT16}")
    pytest.importorskip("ziglang", reason="the emulator is compiled by it")


def with_amx() -> Machine:
    """This machine as if it had AMX."""
    return Machine("x86_64", "linux", frozenset(AMX.features))


@cache
def built() -> Path:
    """The emulator's library."""
    here, out = Path(__file__).parent, Path(mkdtemp()) / "amx.so"
    options = ("-target", "x86_64-linux-gnu", "-mcpu=x86_64_v3", "-shared", "-fPIC", "-O2")
    command = [sys.executable, "-m", "ziglang", "cc", *options, "-Wall", "-Werror", "-o", str(out)]
    subprocess.run([*command, str(here / "emulator.c")], check=True, capture_output=True)
    return out


@cache
def library() -> ctypes.CDLL:
    """The emulator in this process."""
    made = ctypes.CDLL(str(built()))
    made.performed_instructions.restype = ctypes.c_uint64
    return made


@contextlib.contextmanager
def emulation() -> Iterator[None]:
    """Run AMX instructions of this process, and of those forked from it, by the emulator."""
    emulator = library()
    assert emulator.start_emulation() == 0
    try:
        yield
    finally:
        emulator.stop_emulation()
