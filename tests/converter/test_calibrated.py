from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter import calibrated
from converter.calibrated import Method
from converter.convert import convert
from converter.quality import METHODS, Quality
from converter.quantize.gptq import Effort
from converter.samples import DEFAULT_TEXT, Wanted
from converter.synth import synthesize
from edge.bundle import Bundle
from edge.errors import UsageError
from edge.watch import Silent
from tests.checkpoints import TINY, make_checkpoint, rewrite_weights
from tests.converter.quantize.layers import divergence


class Stop(Exception):
    """Ends a conversion in its middle."""


class Notes(Silent):
    """Keeps notes; stops after so many weights."""

    def __init__(self, most: float = np.inf) -> None:
        self.texts: list[str] = []
        self.left = most

    def start(self, stage: str, total: int, unit: str) -> None:
        self.weights = stage == "weights"

    def advance(self, count: int) -> None:
        self.left -= count * self.weights
        if self.left < 0:
            raise Stop

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Method(Effort(rounds=2), samples=Wanted(count=512, length=64))
    monkeypatch.setitem(METHODS, "good", method)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny", bos_token_id=1, num_hidden_layers=3)


@pytest.mark.parametrize(("form", "cuts"), [("w4g32", (0.33, 0.45)), ("w2g32", (0.4, 0.55))])
def test_divergence_of_a_trained_model_is_cut(
    form: str,
    cuts: tuple[float, float],
    stories: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By GPTQ alone, and more where layers make up for those before them."""
    fast = divergence(stories, tmp_path, weights=form)
    for correction, cut in zip((0.0, 0.8), cuts, strict=True):
        method = Method(Effort(rounds=2), correction, Wanted(count=2048))
        monkeypatch.setitem(METHODS, "good", method)
        made = divergence(stories, tmp_path, quality="good", weights=form)
        assert made < (1 - cut) * fast, (form, correction, made, fast)


def test_every_layer_tells_its_error(checkpoint: Path, tmp_path: Path) -> None:
    notes = Notes()
    convert(checkpoint, tmp_path / "m", weights="w3g32", quality="good", watcher=notes)
    assert notes.texts[0] == "calibration: 512 tokens, drawn from the model, 8 of 64 tokens"
    assert [text.split(":")[0] for text in notes.texts[1:]] == [
        "layers.0",
        "layers.1",
        "layers.2",
        "head",
    ]
    assert notes.texts[1].startswith("layers.0: output error q ")


@pytest.mark.parametrize("tied", [False, True])
def test_an_interrupted_conversion_makes_the_same_bundle(tied: bool, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "tiny", bos_token_id=1, tie_word_embeddings=tied)
    convert(source, tmp_path / "whole", weights="w3g32", quality="good")
    for most in (12_000, 30_000):
        with pytest.raises(Stop):
            convert(source, tmp_path / "m", weights="w3g32", quality="good", watcher=Notes(most))
    convert(source, tmp_path / "m", weights="w3g32", quality="good")
    name = "weights.safetensors"
    assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_quality_starts_again(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        convert(checkpoint, tmp_path / "m", quality="good", watcher=Notes(20_000))
    notes = Notes()
    convert(checkpoint, tmp_path / "m", quality="fast", watcher=notes)
    assert notes.texts == []


def test_row_blocks_make_the_same_bundle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(checkpoint, tmp_path / "whole", weights="w3g32", quality="good")
    monkeypatch.setattr("converter.weights.BLOCK_WEIGHTS", 1)
    convert(checkpoint, tmp_path / "blocks", weights="w3g32", quality="good")
    whole, blocks = (Bundle.open(tmp_path / name) for name in ("whole", "blocks"))
    for tensor in whole.graph.tensors:
        pair = [b.tensor(tensor.name).dequantized() for b in (whole, blocks)]
        # BLAS may add in another order for another count of rows, and a tie fall the other way
        assert (np.abs(pair[0] - pair[1]) > 1e-4).mean() < 0.05, tensor.name


def test_ternary_weights_are_kept_as_they_are(tmp_path: Path) -> None:
    ternary = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "online",
    }
    config = TINY | {"model_type": "bitnet", "bos_token_id": 1, "quantization_config": ternary}
    synthesize(config, tmp_path / "bitnet", dtype="f32")
    for quality in ("fast", "good"):
        convert(tmp_path / "bitnet", tmp_path / quality, weights="ternary", quality=quality)
    fast, good = (Bundle.open(tmp_path / quality) for quality in ("fast", "good"))
    for name in ("layers.0.q", "layers.1.down"):
        made = [bundle.tensor(name).dequantized() for bundle in (fast, good)]
        assert (made[0] == made[1]).all()


def test_an_empty_model_of_zeros_converts(checkpoint: Path, tmp_path: Path) -> None:
    rewrite_weights(checkpoint, model__layers__1__mlp__down_proj__weight=np.zeros((32, 172), "f4"))
    convert(checkpoint, tmp_path / "m", weights="w2g32", quality="good")
    assert not Bundle.open(tmp_path / "m").tensor("layers.1.down").dequantized().any()


def test_a_text_is_used_where_it_is_given(checkpoint: Path, tmp_path: Path) -> None:
    _give_tokenizer(checkpoint)
    (tmp_path / "my.txt").write_text("once upon a time there was a small model " * 20)
    notes = Notes()
    convert(
        checkpoint,
        tmp_path / "m",
        quality="good",
        calibration=tmp_path / "my.txt",
        watcher=notes,
    )
    assert "text my.txt" in notes.texts[0]


def test_a_large_model_reads_the_shipped_text(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converter.samples.MOST_DRAWN", 1)
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        convert(checkpoint, tmp_path / "m", quality="good")
    _give_tokenizer(checkpoint)
    notes = Notes()
    convert(checkpoint, tmp_path / "m", quality="good", watcher=notes)
    assert f"text {DEFAULT_TEXT.name}" in notes.texts[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("great", None, "use one of fast, good, best"),
        ("fast", "a.txt", "which uses none"),
        ("good", "a.txt", "no such file"),
    ],
)
def test_wrong_options_are_refused(name: str, text: str | None, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        Quality.parse(name, None if text is None else Path(text))
    assert message in f"{raised.value.what} {raised.value.cure}"


def test_no_samples_are_taken_when_all_is_done(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted behind the last tensor, a conversion has nothing to calibrate."""
    with monkeypatch.context() as patch:
        patch.setattr("converter.convert.describe", _stop)
        with pytest.raises(Stop):
            convert(checkpoint, tmp_path / "m", quality="good")
    monkeypatch.setattr("converter.convert.choose_samples", _stop)
    monkeypatch.setattr(calibrated, "Walk", _stop)
    convert(checkpoint, tmp_path / "m", quality="good")


def _stop(*_arguments: object) -> None:
    raise Stop


def _give_tokenizer(checkpoint: Path) -> None:
    """A tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    (checkpoint / "tokenizer.json").write_text(tokenizer.to_str())
