"""Training in torch: our own math agrees with the converter's, and an interrupted one goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from apps.pocket import train as verb
from edge.formats import Format

torch = pytest.importorskip("torch")

from apps.pocket import training  # noqa: E402
from apps.pocket.fakequant import Rounding, round_to  # noqa: E402
from apps.pocket.network import Network, Shape  # noqa: E402

SMALL = Shape(
    vocabulary=600, hidden=64, layers=2, heads=2, kv_heads=1, feed_forward=96, context=128
)


@pytest.mark.parametrize("form", ["w4g64", "w2g64", "w2g32", "w3g32"])
def test_rounding_is_round_to_nearest(form: str) -> None:
    from converter.quantize.rtn import quantize_rows
    from edge.planes import dequantize

    rows = np.random.default_rng(0).normal(0, 0.02, (8, 128)).astype(np.float32)
    parsed = Format.parse(form)
    ours = round_to(torch.from_numpy(rows), parsed).numpy()
    theirs = dequantize(parsed, quantize_rows(parsed, rows))
    assert np.abs(ours - theirs).max() < 1e-6
    again = round_to(torch.from_numpy(ours), parsed).numpy()
    assert np.abs(again - ours).max() < 1e-5


def test_rounding_lets_gradients_through() -> None:
    weight = torch.randn(4, 64, requires_grad=True)
    (round_to(weight, Format.parse("w2g64")) * 3).sum().backward()
    assert torch.equal(weight.grad, torch.full((4, 64), 3.0))


def test_the_checkpoint_means_the_same_to_lutra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edge
    from converter.convert import convert

    monkeypatch.setattr(training, "TOKENIZER_EXAMPLES", 500)
    torch.manual_seed(0)
    network = Network(SMALL)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_((weight * 4).bfloat16())
    training.make_tokenizer(tmp_path, 1, SMALL.vocabulary)
    training.write_checkpoint(tmp_path, network)
    convert(tmp_path, tmp_path / "out.lutra", weights="f32")
    model = edge.load(tmp_path / "out.lutra", target="ref")
    ids = [5, 77, 300, 12, 599]
    with torch.no_grad():
        wanted = network.logits(network(torch.tensor([ids])))[0].numpy()
    assert np.abs(model.logits(ids) - wanted).max() < 1e-3


def test_an_interrupted_training_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "Shape", lambda: SMALL)
    monkeypatch.setattr(training, "TESTED", 8)
    monkeypatch.setattr(training, "TOKENIZER_EXAMPLES", 500)
    recipe = training.Recipe(steps=6, batch=4, save_every=3, test_every=100)
    training.train(tmp_path / "whole", recipe, "cpu")
    save = training.save

    def interrupted(*values: object) -> None:
        save(*values)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train(tmp_path / "parts", recipe, "cpu")
    monkeypatch.setattr(training, "save", save)
    training.train(tmp_path / "parts", recipe, "cpu")
    whole, parts = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")
    )
    assert whole == parts


def test_loss_is_of_the_answer_alone() -> None:
    ids, targets = training.pad([([0, 9, 8, 2, 7, 1], 4), ([0, 9, 2, 5, 1], 3)])
    assert ids.tolist() == [[0, 9, 8, 2, 7], [0, 9, 2, 5, 0]]
    assert targets.tolist() == [[-100, -100, -100, 7, 1], [-100, -100, 5, 1, -100]]


def test_rounding_turns_begin_late() -> None:
    recipe = training.Recipe(steps=100)
    assert recipe.rounding(10) == Rounding()
    assert {recipe.rounding(step) for step in range(90, 98)} == set(training.TURNS)
    assert recipe.rate(recipe.steps - 1) < 0.03


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verb.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["train", str(tmp_path)])
    assert verb.main() != 0
    assert 'pip install "lutra[train]"' in capsys.readouterr().err


def test_help_names_the_options() -> None:
    command = [sys.executable, "-m", "apps.pocket.train", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--steps" in shown.stdout
