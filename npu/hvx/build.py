"""From kernels to Hexagon machine code: llvmlite for the vector language, ziglang for the rest.

ziglang brings clang, which assembles scheduled loops and compiles two small C files, and lld, which
links. Objects are kept in the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from cpu.codegen.piped import source
from cpu.kernels.kernel import Kernel
from edge.errors import LutraError, MissingDependency
from npu.hvx.contract import Contract
from npu.hvx.isa import TRIPLE, Hexagon

_HERE = Path(__file__).parent

_C_OPTIONS = ("-O2", "-ffreestanding", "-fno-builtin", "-fPIC", "-std=gnu11", "-Wall", "-Werror")

# Emulators want 64 KiB.
_PAGE_BYTES = 64 * 1024


def require_tools() -> None:
    """Raises MissingDependency without the compiler or the linker."""
    missing = [name for name in ("llvmlite", "ziglang") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"Hexagon code needs {' and '.join(missing)}", 'pip install "lutra[ahead]"'
        )


def kernel_object(isa: Hexagon, kernels: Iterable[Kernel]) -> bytes:
    """Kernels as an object file; two of the same name are one."""
    from cpu.codegen.emit import Module, object_code

    module = Module(isa)
    for kernel in {kernel.name: kernel for kernel in kernels}.values():
        kernel.emit(module)
    return object_code(module)


def kernel_objects(isa: Hexagon, families: Iterable[Iterable[Contract]]) -> list[bytes]:
    """An object file for each family of kernels, so that the common one is made once."""
    return [kernel_object(isa, [each.kernel for each in family]) for family in families]


def assembled(isa: Hexagon, text: str) -> bytes:
    """Assembly as an object file. The assembler refuses packets that no Hexagon can run."""
    return _compiled(isa, text, ".s", ())


def runtime_object(isa: Hexagon) -> bytes:
    """What machine code calls where there is no instruction."""
    return _c_object(isa, "runtime.c")


def start_object(isa: Hexagon) -> bytes:
    """The emulated device's main program."""
    return compiled(isa, source())


def compiled(isa: Hexagon, text: str) -> bytes:
    """C as an object file."""
    return _compiled(isa, text, ".c", _C_OPTIONS)


def _c_object(isa: Hexagon, name: str) -> bytes:
    return compiled(isa, (_HERE / name).read_text(encoding="utf-8"))


def _compiled(isa: Hexagon, text: str, suffix: str, options: Sequence[str]) -> bytes:
    from cpu.codegen.cache import cache_folder, keep

    facts = (text, isa.assembler_processor, *options, tools()["ziglang"])
    path = cache_folder() / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.o"
    if path.is_file():
        return path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / f"source{suffix}", Path(folder) / "made.o"
        source.write_text(text, encoding="utf-8")
        target = ("-target", "hexagon-linux-musl", f"-mcpu={isa.assembler_processor}")
        _run("cc", *target, *options, "-c", str(source), "-o", str(made))
        content = made.read_bytes()
    keep(path, content)
    return content


def tools() -> dict[str, str]:
    """What code is made with, and its versions."""
    from importlib.metadata import version

    require_tools()
    return {name: version(name) for name in ("llvmlite", "ziglang")}


def program(objects: Sequence[bytes], out: Path) -> None:
    """Link objects into a program that needs no library, written to `out` when whole."""
    options = ("-static", "-e", "_start", "-z", f"max-page-size={_PAGE_BYTES}")
    _linked(objects, options, out)


def shared(objects: Sequence[bytes], out: Path) -> None:
    """Link objects into a library that a device loads, written to `out` when whole."""
    named = ("-shared", "-soname", out.name, "--hash-style=sysv", "--build-id=none")
    bound = ("-Bsymbolic", "--no-undefined", "--strip-all", "-z", "max-page-size=4096")
    _linked(objects, (*named, *bound), out)


def _linked(objects: Sequence[bytes], options: Sequence[str], out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        names = []
        for index, content in enumerate(objects):
            path = Path(folder) / f"{index}.o"
            path.write_bytes(content)
            names.append(str(path))
        made = Path(folder) / "made"
        _run("ld.lld", *options, "-o", str(made), *names)
        made.replace(out)


def _run(*words: str) -> None:
    require_tools()
    command = [sys.executable, "-m", "ziglang", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise LutraError(f"Hexagon {words[0]} failed: {done.stderr.strip()[:2000]}")


__all__ = [
    "TRIPLE",
    "assembled",
    "compiled",
    "kernel_object",
    "program",
    "require_tools",
    "runtime_object",
    "shared",
    "start_object",
]
