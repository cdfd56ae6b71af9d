from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge
from converter.convert import convert, read_generation
from edge.bundle import Bundle, verify
from edge.model import DEFAULT_SAMPLING, with_defaults
from edge.sampler import Sampling
from edge.watch import Silent
from tests.checkpoints import make_checkpoint, rewrite_weights

FORMATS = [
    "f32",
    "f16",
    "w8gc",
    "w8g64",
    "w4g64",
    "w4g32a",
    "w4gc",
    "w3g64",
    "w2g32",
    "w2g64a",
    "ternary",
    "ternaryg32",
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny")


def leftovers(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.glob(out.name + "*"))


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_converts_opens_and_runs(form: str, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.lutra"
    manifest = convert(checkpoint, out, weights=form, head=form)
    bundle = Bundle.open(out)
    verify(bundle)
    assert bundle.manifest == manifest
    logits = edge.load(out).logits([1, 2, 3])
    assert logits.shape == (3, 300)
    assert np.isfinite(logits).all()


def test_more_bits_are_closer_to_float(checkpoint: Path, tmp_path: Path) -> None:
    def logits(form: str) -> Any:
        convert(checkpoint, tmp_path / form, weights=form, head=form)
        return edge.load(tmp_path / form, target="ref").logits([5, 7, 11, 13])

    exact = logits("f32")
    errors = [np.abs(logits(f) - exact).mean() for f in ("f16", "w8gc", "w4g32", "w3g32", "w2g32")]
    assert errors == sorted(errors)
    assert errors[1] < errors[2] / 4


def test_blocks_make_the_same_bundle_as_a_whole_tensor(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for form in ("w4g64", "ternary", "f16"):
        convert(checkpoint, tmp_path / "whole", weights=form)
        monkeypatch.setattr("converter.weights.BLOCK_WEIGHTS", 1)
        convert(checkpoint, tmp_path / "blocks", weights=form)
        monkeypatch.undo()
        name = "weights.safetensors"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "blocks" / name).read_bytes()
        for made in ("whole", "blocks"):
            shutil.rmtree(tmp_path / made)


def test_shards_make_the_same_bundle_as_one_file(checkpoint: Path, tmp_path: Path) -> None:
    from converter.synth import synthesize
    from tests.checkpoints import TINY

    synthesize(TINY, tmp_path / "sharded", dtype="f32", shard_bytes=20_000)
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    for source in ("tiny", "sharded"):
        convert(tmp_path / source, tmp_path / f"{source}.lutra", weights="w4g64")
    read = [
        (tmp_path / f"{s}.lutra" / "weights.safetensors").read_bytes() for s in ("tiny", "sharded")
    ]
    assert read[0] == read[1]


def test_the_manifest_states_the_error_of_each_tensor(checkpoint: Path, tmp_path: Path) -> None:
    manifest = convert(checkpoint, tmp_path / "m", weights="w4g64")
    errors = {name: record.relative_rms_error for name, record in manifest.tensors.items()}
    assert errors["layers.0.attention_norm"] == 0
    assert 0.05 < errors["layers.0.q"] < 0.12


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, DEFAULT_SAMPLING),
        ({"temperature": 0.3}, DEFAULT_SAMPLING),  # says nothing without do_sample
        ({"do_sample": True}, Sampling(temperature=1.0, top_k=50)),
        ({"do_sample": True, "temperature": None}, Sampling(temperature=1.0, top_k=50)),
        ({"do_sample": True, "temperature": 0.3}, Sampling(temperature=0.3, top_k=50)),
        ({"do_sample": True, "top_k": 5, "top_p": 0.9}, Sampling(1.0, top_k=5, top_p=0.9)),
    ],
)
def test_sampling_that_the_checkpoint_asks_for(values: dict[str, Any], expected: Sampling) -> None:
    assert with_defaults(DEFAULT_SAMPLING, read_generation(values)) == expected


class Notes(Silent):
    """Keeps what a conversion notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize("source", ["{% if x %}", "{{ 1 + }}"])
def test_a_template_that_does_not_compile_is_noted(
    source: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2")
    (checkpoint / "chat_template.jinja").write_text(source)
    watcher = Notes()
    convert(checkpoint, tmp_path / "m.lutra", watcher=watcher)
    assert watcher.texts[0].startswith("note: the chat template is ")
    assert "chat will not work" in watcher.texts[1]
    monkeypatch.setitem(sys.modules, "jinja2", None)
    watcher = Notes()
    convert(checkpoint, tmp_path / "m.lutra", watcher=watcher, overwrite=True)
    assert watcher.texts == []


def test_a_byte_order_mark_does_no_harm(checkpoint: Path, tmp_path: Path) -> None:
    path = checkpoint / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert convert(checkpoint, tmp_path / "m.lutra").model_type == "llama"


@pytest.mark.parametrize("form", ["f32", "w8gc", "ternary"])
def test_the_error_of_huge_weights_is_a_number(form: str, checkpoint: Path, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32) * np.float32(1e30)
    rewrite_weights(checkpoint, model__layers__0__self_attn__q_proj__weight=weights)
    manifest = convert(checkpoint, tmp_path / "m.lutra", weights=form)
    assert (form == "f32") == (manifest.tensors["layers.0.q"].relative_rms_error == 0)
    assert manifest.tensors["layers.0.q"].relative_rms_error < 1


def test_memory_is_bounded_by_the_block_not_the_model(tmp_path: Path) -> None:
    """What the converter takes is under a quarter of the model in float32."""
    source = make_checkpoint(
        tmp_path / "big",
        vocab_size=32000,
        hidden_size=512,
        num_hidden_layers=8,
        intermediate_size=2048,
        dtype="bf16",
    )
    script = (
        "import resource, sys\n"
        "from converter.convert import convert\n"
        "import converter.weights as w\n"
        "w.BLOCK_WEIGHTS = 1 << 18\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "convert(sys.argv[1], sys.argv[2], weights='w4g64')\n"
        "print(peak() - before)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(source), str(tmp_path / "m.lutra")],
        capture_output=True,
        text=True,
        check=True,
    )
    float32_kb = 4 * 65_000_000 / 1000
    assert int(run.stdout) < 0.25 * float32_kb, run.stdout
