"""GGUF files in parts: the same bundle as of the whole file, or an error that names the part."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.convert import convert, prepare
from converter.plan import Formats
from edge.errors import SourceNotFound, TruncatedSource, UnsupportedMath
from tests.checkpoints import make_checkpoint
from tests.gguf_files import split_gguf, write_gguf

pytest.importorskip("gguf")

SMALL = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_gguf(make_checkpoint(tmp_path / "model", **SMALL), tmp_path / "m.gguf", "Q4_0")


@pytest.fixture
def parts(whole: Path) -> list[Path]:
    (whole.parent / "parts").mkdir()
    return split_gguf(whole, whole.parent / "parts", 3)


def test_parts_are_the_whole_file(whole: Path, parts: list[Path], tmp_path: Path) -> None:
    """Whichever part is given, or the folder with all of them."""
    convert(whole, tmp_path / "whole.lutra")
    expected = (tmp_path / "whole.lutra" / "weights.safetensors").read_bytes()
    for number, given in enumerate([parts[0], parts[2], parts[0].parent]):
        out = tmp_path / f"{number}.lutra"
        assert convert(given, out).name == "m"
        assert (out / "weights.safetensors").read_bytes() == expected


def test_a_part_that_is_missing_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(SourceNotFound, match=r"one of 3 parts, and m-00002-of-00003.gguf not th"):
        prepare(parts[0], Formats.parse())


def test_a_part_by_another_name(parts: list[Path]) -> None:
    with pytest.raises(UnsupportedMath, match=r"one of 3 parts .* NAME-00001-of-00003"):
        prepare(parts[0].rename(parts[0].with_name("model.gguf")), Formats.parse())


def test_a_count_that_is_none(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", **SMALL)
    path = write_gguf(source, tmp_path / "m.gguf", metadata={"split.count": [3, 3]})
    with pytest.raises(TruncatedSource, match=r"split.count is no whole number"):
        prepare(path, Formats.parse())


def test_parts_that_do_not_belong_together(parts: list[Path]) -> None:
    content = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(TruncatedSource, match=r"00002-of-00003.gguf: its split.no is 2, need 1"):
        prepare(parts[0], Formats.parse())
    parts[1].write_bytes(content)
    other = split_gguf(parts[0].parent.parent / "m.gguf", parts[0].parent.parent, 3, turned=True)
    parts[2].write_bytes(other[2].read_bytes())
    with pytest.raises(TruncatedSource, match=r"the parts hold \d+ tensors, \d+ of different"):
        prepare(parts[0], Formats.parse())
