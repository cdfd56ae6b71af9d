from __future__ import annotations

from pathlib import Path

import pytest

from converter.calibrated import Method
from converter.convert import convert, prepare
from converter.plan import Formats
from converter.quality import METHODS
from converter.quantize.gptq import Effort
from converter.samples import Wanted
from edge.errors import UsageError
from tests.checkpoints import make_checkpoint
from tests.converter.quantize.layers import divergence


def test_mixed_widths_beat_one_width_at_its_size(stories: Path, tmp_path: Path) -> None:
    """By 5 % of the KL divergence at the size of `--weights w3g32`, rounded to nearest."""
    plain = prepare(stories, Formats.parse("w3g32")).plan
    one = divergence(stories, tmp_path, weights="w3g32", texts=3)
    size = f"{8 * plain.byte_count / plain.parameter_count:.4f}bpw"
    mixed = divergence(stories, tmp_path, weights="w3g32", size=size, texts=3)
    assert sum(p.byte_count for p in prepare_mixed(stories, size)) <= plain.byte_count
    assert mixed < 0.95 * one


def test_widths_are_measured_with_the_quantizer_that_is_used(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the widths, `good` loses less than half of what the next one below does."""
    method = Method(Effort(rounds=1), samples=Wanted(count=2048))
    monkeypatch.setitem(METHODS, "good", method)
    monkeypatch.setattr("converter.convert.PROBE", Wanted(count=256, length=128))
    one = divergence(stories, tmp_path, weights="w4g32", head="w8gc", quality="good")
    mixed = divergence(stories, tmp_path, weights="w4g32", quality="good", size="8bpw")
    assert mixed < 0.5 * one


def prepare_mixed(source: Path, size: str) -> tuple[object, ...]:
    return prepare(source, Formats.parse("w3g32"), size=size).plan.tensors


def test_a_size_that_nothing_fits_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("converter.convert.measure")
    source = make_checkpoint(tmp_path / "tiny", bos_token_id=1)
    for size in ("0bpw", "1bpw"):
        with pytest.raises(UsageError, match="smallest formats"):
            convert(source, tmp_path / "m", size=size)


def test_a_size_over_all_is_eight_bits(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "tiny", bos_token_id=1)
    manifest = convert(source, tmp_path / "m", size="1MiB")
    assert {str(t.form) for t in manifest.tensors.values()} == {"w8g64", "f32"}


def test_one_bit_is_taken_where_two_do_not_fit(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "tiny", bos_token_id=1)
    least = prepare(source, Formats.parse("w1g32", "w1g32")).plan
    for share, widths in ((1.0, {"w1g32"}), (1.2, {"w1g32", "w2g32"})):
        size = f"{share * 8 * (least.byte_count + 1) / least.parameter_count:.4f}bpw"
        plan = prepare(source, Formats.parse("w4g32", "w4g32"), size=size).plan
        assert widths <= {str(p.form) for p in plan.tensors}
        assert plan.byte_count <= share * (least.byte_count + 1)
