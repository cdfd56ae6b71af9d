"""Code images: linked and mapped without a compiler, refused where they are not whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llvmlite import ir

from converter.convert import convert
from cpu.codegen import cache
from cpu.codegen.emit import Module
from cpu.codegen.image import BadImage, Image, link_image
from cpu.codegen.language import POINTER, Code, Value
from edge.errors import LutraError
from edge.formats import Format
from tests.checkpoints import make_checkpoint
from tests.cpu.calls import check, run
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

FORM = Format.parse("w3g32a")
TARGETS = runnable()
native = pytest.mark.skipif(not TARGETS, reason="no code generator for this machine")


def image_of(target: str) -> bytes:
    return link_image(object_of(isa_of(target), kernels_of(FORM)))


@pytest.mark.parametrize("target", [*X86, *ARM])
def test_code_of_every_target_links(target: str) -> None:
    assert image_of(target).startswith(object_of(isa_of(target), kernels_of(FORM))[64:80])


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_from_a_file_and_from_memory(target: str, tmp_path: Path) -> None:
    content, rng = image_of(target), np.random.default_rng(5)
    (tmp_path / "kernels.code").write_bytes(content)
    weights = random_weights(FORM, 70, 130, rng)
    case = linear_case(FORM, weights, rng.normal(size=(2, 130)).astype(np.float32))
    for image in (Image.open(tmp_path / "kernels.code"), Image.of(content)):
        check(case, run(image, case))
        with pytest.raises(KeyError):
            image.address("absent")


def test_files_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    content = image_of(X86[0])
    path = tmp_path / "kernels.code"
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for bad in (b"", content[:20], content[:-1], content[100:], bytes(flipped), b"x" * 500):
        path.write_bytes(bad)
        with pytest.raises(BadImage):
            Image.open(path)


@native
def test_where_files_may_not_run_the_code_runs_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kernels.code"
    path.write_bytes(image_of(TARGETS[0]))
    on_disk, inode = Image.__init__, path.stat().st_ino

    def forbids(self: Image, descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == inode:
            raise PermissionError(1, "Operation not permitted")
        on_disk(self, descriptor)

    monkeypatch.setattr(Image, "__init__", forbids)
    assert Image.open(path).address(kernels_of(FORM)[0].name)


def test_code_that_calls_what_it_has_not_is_refused() -> None:
    module = Module(isa_of(X86[0]))

    def body(code: Code, pointer: Value) -> None:
        kind = ir.FunctionType(ir.VoidType(), [POINTER.ir])
        code.builder.call(code.declare("elsewhere", kind), [pointer.ir])

    module.function("calls", [POINTER], body)
    from cpu.codegen.emit import object_code

    with pytest.raises(LutraError, match="'elsewhere'"):
        link_image(object_code(module))


LOADS = """
import sys, edge
model = edge.load(sys.argv[1])
print(int(model.logits([1, 2, 3])[-1].argmax()), "llvmlite.binding" in sys.modules)
"""


@native
def test_cached_code_comes_without_the_compiler_and_bad_code_is_made_again(
    tmp_path: Path,
) -> None:
    make_checkpoint(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "m.lutra", weights="w4g32")
    folder = tmp_path / "cache"

    def load() -> list[str]:
        command = [sys.executable, "-c", LOADS, str(tmp_path / "m.lutra")]
        settings = os.environ | {"LUTRA_CACHE": str(folder)}
        return subprocess.run(
            command, env=settings, capture_output=True, text=True, check=True
        ).stdout.split()

    first = load()
    assert first[1] == "True"
    assert load() == [first[0], "False"]
    for path in folder.glob("*.code"):
        path.write_bytes(path.read_bytes()[:-9])
    assert load() == first
    assert load() == [first[0], "False"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path("/proc/none")):
        with pytest.warns(cache.NotCached, match="LUTRA_CACHE"):
            cache.keep(folder / "k.code", b"code")
    cache.keep(tmp_path / "new" / "k.code", b"code")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["k.code"]


def test_an_empty_name_of_the_cache_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTRA_CACHE", "")
    assert cache.cache_folder().is_absolute()


def test_the_key_changes_with_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("cpu", "edge"):
        (tmp_path / package / "kernels").mkdir(parents=True)
        (tmp_path / package / "kernels" / "a.py").write_text("1")
    monkeypatch.setattr(cache, "_ROOT", tmp_path)
    digest = cache.sources_digest.__wrapped__
    before = digest()
    assert digest() == before
    (tmp_path / "cpu" / "kernels" / "a.py").write_text("2")
    assert digest() != before
