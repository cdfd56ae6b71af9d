"""Libraries compiled ahead: what they are made of, that they run, and what is said of bad ones."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llvmlite import ir

from cpu.codegen import link
from cpu.codegen.emit import Module, object_code
from cpu.codegen.language import POINTER, Code, Value
from cpu.library import Library
from edge.errors import LutraError, MissingDependency, TruncatedBundle, UnknownTarget
from edge.formats import Format
from edge.target import this_machine
from tests.cpu.calls import check, load, run, save
from tests.cpu.harness import (
    ARM,
    X86,
    isa_of,
    kernels_of,
    linear_case,
    object_of,
    random_weights,
    runnable,
)

pytest.importorskip("ziglang", reason="libraries are linked by it")

FORM = Format.parse("w2g64a")
FOREIGN = ARM[0] if this_machine().arch == "x86_64" else X86[0]


def library(target: str, folder: Path) -> Path:
    path = folder / "kernels.so"
    link.shared_library([object_of(isa_of(target), kernels_of(FORM))], path)
    return path


def segments(path: Path) -> list[tuple[int, int]]:
    """Type and alignment of each segment of an ELF file."""
    content = path.read_bytes()
    (start,) = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    return [
        (
            struct.unpack_from("<I", content, start + i * size)[0],
            struct.unpack_from("<Q", content, start + i * size + 48)[0],
        )
        for i in range(count)
    ]


def symbols(path: Path) -> dict[str, bool]:
    """Dynamic symbols of an ELF file, and whether each is defined in it."""
    content = path.read_bytes()
    (start,) = struct.unpack_from("<Q", content, 40)
    size, count = struct.unpack_from("<HH", content, 58)
    tables = [struct.unpack_from("<IIQQQQIIQQ", content, start + i * size) for i in range(count)]
    (dynamic,) = [table for table in tables if table[1] == 11]  # SHT_DYNSYM
    names = content[tables[dynamic[6]][4] :]
    found = {}
    for place in range(dynamic[4] + 24, dynamic[4] + dynamic[5], 24):  # the first one is empty
        name, _, _, section = struct.unpack_from("<IBBH", content, place)
        found[names[name : names.index(b"\0", name)].decode()] = section != 0
    return found


@pytest.mark.parametrize("target", [*X86, *ARM])
def test_a_library_needs_nothing_and_suits_large_pages(target: str, tmp_path: Path) -> None:
    path = library(target, tmp_path)
    assert symbols(path) == {kernel.name: True for kernel in kernels_of(FORM)}
    loaded = [alignment for kind, alignment in segments(path) if kind == 1]  # PT_LOAD
    assert min(loaded) >= 64 * 1024
    assert [p.name for p in tmp_path.iterdir()] == ["kernels.so"]


@pytest.mark.parametrize("target", runnable())
def test_it_computes_what_the_twins_do(target: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 200)).astype(np.float32)
    case = linear_case(FORM, random_weights(FORM, 100, 200, rng), x, threads=2)
    save(tmp_path / "cases.npz", [case])
    (read,) = load(tmp_path / "cases.npz")
    check(read, run(Library(library(target, tmp_path)), read))


def test_linking_again_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "kernels.so"
    path.write_bytes(b"old")
    library(X86[0], tmp_path)
    assert path.read_bytes()[:4] == b"\x7fELF"


def test_a_function_from_elsewhere_is_refused(tmp_path: Path) -> None:
    def calling(code: Code, pointer: Value) -> None:
        kind = ir.FunctionType(ir.VoidType(), [pointer.ir.type])
        code.builder.call(code.declare("free", kind), [pointer.ir])

    module = Module(isa_of(X86[0]))
    module.function("calling", [POINTER], calling)
    with pytest.raises(LutraError, match=r"kernels.so.*undefined symbol: free"):
        link.shared_library([object_code(module)], tmp_path / "kernels.so")
    assert list(tmp_path.iterdir()) == []


def test_without_the_linker_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="ziglang"):
        link.shared_library([], tmp_path / "kernels.so")


def test_a_missing_function_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"kernels.so has no absent"):
        Library(library(runnable()[0], tmp_path)).address("absent")


@pytest.mark.parametrize(
    ("keep", "said"), [(0, "0 bytes"), (40, "40 bytes"), (5000, "its header says")]
)
def test_a_short_library_is_named(tmp_path: Path, keep: int, said: str) -> None:
    path = library(runnable()[0], tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TruncatedBundle, match=said):
        Library(path)


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    with pytest.raises(TruncatedBundle, match=r"gone.so: not there"):
        Library(tmp_path / "gone.so")


def test_a_file_that_is_no_library_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.so"
    path.write_bytes(b"hello" * 100)
    with pytest.raises(TruncatedBundle, match="no 64-bit library"):
        Library(path)


def test_a_library_for_another_processor_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownTarget, match="this machine is"):
        Library(library(FOREIGN, tmp_path))


def test_a_library_that_the_system_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk from which nothing may run."""

    def refuse(name: str) -> None:
        raise OSError(f"{name}: failed to map segment from shared object")

    monkeypatch.setattr("cpu.library.ctypes.CDLL", refuse)
    with pytest.raises(UnknownTarget, match=r"kernels\.so: failed to map") as caught:
        Library(library(runnable()[0], tmp_path))
    assert "where programs may run" in caught.value.cure


def test_opening_a_library_imports_no_compiler() -> None:
    check = (
        "import sys, cpu.library; sys.exit(any(n in sys.modules for n in ('llvmlite', 'numba')))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
