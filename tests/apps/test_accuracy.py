from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from apps.accuracy.command import Entry, lead
from apps.accuracy.measure import Row, Score
from apps.accuracy.peers import find_importance, restore
from apps.accuracy.plot import Axis, draw
from apps.bench.gguf_file import interleave
from apps.cli import main
from converter.calibrate import FloatTensors, Walk
from converter.convert import prepare
from converter.plan import Formats
from converter.samples import Samples
from edge.errors import UsageError
from edge.target import this_machine
from tests.checkpoints import make_checkpoint


def row(name: str, size: int, kl: float, peer: bool = False) -> Row:
    return Row(name, "good", "ref", size, 4.0, Score(kl, 5.0, 0.9), peer)


ROWS = [
    row("w4g32", 100, 0.1),
    row("w3g32", 80, 0.4),
    row("f32", 900, 0.0),
    row("Q4_0", 110, 0.2, peer=True),
    row("Q2_K", 80, 0.3, peer=True),
    row("IQ1", 10, 3.0, peer=True),
]


def test_a_peer_is_compared_with_our_best_that_is_no_larger() -> None:
    pairs = {peer.name: ours and ours.name for peer, ours in lead(ROWS)}
    assert pairs == {"Q4_0": "w4g32", "Q2_K": "w3g32", "IQ1": None}


def test_forms_are_read_from_their_names() -> None:
    assert Entry.parse("w4g32", "good") == Entry("w4g32", "w4g32", None, None, "good")
    mixed = Entry.parse("w4g32/w8gc@5.5bpw", "best")
    assert mixed == Entry("w4g32/w8gc@5.5bpw", "w4g32", "w8gc", "5.5bpw", "best")


def test_methods_are_qualities_with_folds() -> None:
    entry = Entry.parse("w4g32", "good+awq+rotate")
    assert (entry.quality, entry.folds) == ("good", ("awq", "rotate"))
    assert entry.method == "good+awq+rotate"
    with pytest.raises(UsageError, match="magic"):
        Entry.parse("w4g32", "good+magic")


def test_importance_is_the_mean_square_of_inputs(tmp_path: Path) -> None:
    job = prepare(make_checkpoint(tmp_path / "tiny"), Formats.parse("f32"))
    samples = Samples((np.arange(3, 40, dtype=np.int32),), "")
    found = find_importance(job.model, job.weights, samples)
    assert len(found) == 7 * 2 + 1
    for op in (walk := Walk(job.model.graph, FloatTensors(job.weights), samples.sequences)):
        if op.out == "layers.1.down":
            expected = (walk.value("layers.1.gated") ** 2).mean(axis=0)
    assert found["blk.1.ffn_down.weight"] == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_plot_has_a_point_for_every_row_that_diverges() -> None:
    tree = ElementTree.fromstring(draw(ROWS, "a <b> & c"))
    titles = [title.text for title in tree.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 5
    assert "w4g32: 100 bytes, KL 0.1000" in titles
    assert draw([], "none").endswith("</svg>\n")


def test_decades_are_equally_far_apart() -> None:
    axis = Axis(0.01, 10, 400, 100, log=True)
    assert [axis.place(v) for v in (0.01, 0.1, 1, 10)] == pytest.approx([400, 300, 200, 100])


def test_rows_come_back_from_the_peers_order() -> None:
    rows = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    assert (restore(interleave(rows, 8), 8) == rows).all()


def test_table_of_a_trained_model(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every digit of the float model is found again, and the order of formats is as it must be."""
    pytest.importorskip("gguf")
    words = ["eval", str(stories), "--table", "--formats", "w8gc,w4g32", "--qualities", "fast"]
    words += ["--max-tokens", "512", "--peer-formats", "F16,Q8_0,Q4_0", "--json", "--quiet"]
    assert main([*words, "--plot", str(tmp_path / "kl.svg")]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    kl = {r["name"]: r["score"]["kl"] for r in values["rows"]}
    assert abs(kl["f32"]) < 1e-9
    assert kl["llama.cpp F16"] < 1e-5
    assert kl["w8gc"] < 0.01 < kl["w4g32"] < 0.3
    assert kl["llama.cpp Q8_0"] < 0.01 < kl["llama.cpp Q4_0"] < 0.3
    assert [pair["peer"] for pair in values["lead"]] == [
        "llama.cpp F16",
        "llama.cpp Q8_0",
        "llama.cpp Q4_0",
    ]
    assert values["tokens"] == 512
    ElementTree.parse(tmp_path / "kl.svg")


def test_a_form_is_measured_on_every_target(
    stories: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    native = str(this_machine().target())
    words = ["eval", str(stories), "--table", "--formats", "w8gc", "--qualities", "fast"]
    words += ["--max-tokens", "128", "--targets", "ref", "--targets", native, "--json", "--quiet"]
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    kl = {(row["name"], row["target"]): row["score"]["kl"] for row in rows}
    assert kl.keys() == {(name, target) for name in ("f32", "w8gc") for target in ("ref", native)}
    assert kl["f32", native] < 1e-5
    assert kl["w8gc", native] == pytest.approx(kl["w8gc", "ref"], rel=0.05)


@pytest.mark.parametrize("words", [("--formats", "w9"), ("--qualities", "x"), ("--targets", "y")])
def test_wrong_names_are_refused_before_anything_is_made(words: tuple[str, str]) -> None:
    assert main(["eval", "none", "--table", *words]) in (
        2,
        4,
        20,
    )  # the checkpoint is not looked at


def test_without_a_text_or_a_table_the_cure_names_both(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from converter.convert import convert

    convert(stories, tmp_path / "m.lutra", weights="w8gc")
    assert main(["eval", str(tmp_path / "m.lutra")]) != 0
    assert "--text FILE, --exact-match for pocket, or --table" in capsys.readouterr().err


def test_an_unknown_peer_format_is_refused(
    stories: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    words = ["eval", str(stories), "--table", "--formats", "f16", "--qualities", "fast"]
    assert main([*words, "--max-tokens", "256", "--peer-formats", "Q9"]) != 0
    assert "Q9" in capsys.readouterr().err
