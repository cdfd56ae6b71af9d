"""Whole layers on an NPU, with ONNX Runtime standing in for it: prompts, and decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge
from apps.cli import main
from converter.convert import convert
from converter.models import model_types
from converter.npu import plan_npu
from converter.synth import synthesize
from edge.errors import PromptTooLong, UnsupportedMath, UsageError
from edge.npu import Mode
from edge.pair import Pair
from edge.target import Target
from npu.htp.backend import sessions
from npu.htp.layers import LayersProgram
from tests.golden.variants import VARIANTS, token_ids
from tests.npu.htp.conftest import MakeBundle
from tests.npu.htp.measure import divergence

# Mean KL divergence in nats a token that each mode may cost tiny models of random weights: what
# rounding their weights costs, the second digit the same as with pieces.
BOUNDS = {"w8a16": 0.004, "w4a16": 0.1}

# One tiny model of each architecture that a layer can be whole of, and one with biases.
MODELS = [n for n in VARIANTS if n in {*model_types(), "llama_mlp_bias"} - {"bitnet"}]

# Those whose math differs: biases, a norm of heads, softcap and windows.
OTHERS = ("llama_mlp_bias", "qwen3", "gemma2")


def whole(bundle: Path, prefill: str = "npu:ort", decode: str = "npu:ort") -> edge.Model:
    return edge.load(bundle, prefill=prefill, decode=decode, cache_format="f32")


@pytest.mark.parametrize(
    ("name", "mode"), [(n, "w8a16") for n in MODELS] + [(n, "w4a16") for n in OTHERS]
)
def test_every_architecture_is_close_to_float(
    name: str, mode: Mode, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle(name, "npu:ort", mode=mode, form="layers")
    exact = edge.load(bundle, target="ref").logits(token_ids())
    model = whole(bundle)
    made = model.logits(token_ids())
    assert divergence(exact, made) < BOUNDS[mode]
    cache = model.session().cache
    cache.reserve(24)
    alone = [model.program.run(token[None], 1, cache, 1) for token in token_ids().astype(np.int32)]
    assert divergence(made, np.concatenate(alone)) < 1e-5


@pytest.fixture
def model(make_bundle: MakeBundle) -> edge.Model:
    return whole(make_bundle("qwen3", "npu:ort", mode="w8a16", form="layers"))


def program(model: edge.Model) -> LayersProgram:
    assert isinstance(model.program, Pair)
    assert isinstance(model.program.decode, LayersProgram)
    return model.program.decode


def test_one_program_runs_prompts_and_decodes(model: edge.Model) -> None:
    assert isinstance(model.program, Pair)
    assert model.program.prompt is model.program.decode
    assert model.place.count("npu:ort (ONNX Runtime's CPU provider, standing in") == 2
    assert not model.prefill_emulated
    assert not model.decode_emulated
    drawn = list(model.stream(token_ids(), max_tokens=4, sampling=edge.Sampling.greedy()))
    assert len(drawn) == 4


@pytest.mark.parametrize(
    ("prefill", "decode"), [("npu:ort", "ref"), ("cpu", "npu:ort"), ("auto", "npu:ort")]
)
def test_either_half_may_be_elsewhere(prefill: str, decode: str, model: edge.Model) -> None:
    other = whole(model.bundle.folder, prefill, decode)
    greedy = edge.Sampling.greedy()
    tokens = [
        [record.token for record in one.stream(token_ids(), max_tokens=6, sampling=greedy)]
        for one in (model, other)
    ]
    assert tokens[0] == tokens[1]


def test_prompts_alone_load_the_graphs_of_prompts(model: edge.Model) -> None:
    bundle, stand_in = model.bundle, Target.parse("npu:ort")
    loaded = sessions(bundle, stand_in, prompts_only=True)
    assert sorted(loaded) == sorted(
        name for name in sessions(bundle, stand_in) if "prefill" in name
    )
    prompts = whole(bundle.folder, decode="ref").program
    assert isinstance(prompts, Pair)
    assert isinstance(prompts.prompt, LayersProgram)
    assert prompts.prompt.chunks == (32,)


def test_a_trace_has_every_layer_of_the_prompt(model: edge.Model, tmp_path: Path) -> None:
    out, tokens = tmp_path / "trace.json", " ".join(["1 2 3"] * 15)  # two chunks of 32
    words = ["--tokens", tokens, "--greedy", "--max-tokens", "2", "--trace", str(out), "--quiet"]
    assert main(["run", str(model.bundle.folder), "--decode", "npu:ort", *words]) == 0
    events = [e for e in json.loads(out.read_text())["traceEvents"] if e["ph"] == "X"]
    layers = sorted(e["name"] for e in events if e["cat"] == "npu")
    count = len(model.bundle.graph.caches)
    assert layers == [f"chunk {c} layers.{n}" for c in (0, 1) for n in range(count)]
    ends = [e["ts"] + e["dur"] for e in events if e["cat"] in ("npu", "cpu")]
    starts = [e["ts"] for e in events if e["cat"] in ("npu", "cpu")]
    assert all(
        start >= end - 1 for start, end in zip(starts[1:], ends, strict=False)
    )  # microseconds


def test_a_plan_is_of_the_form_that_the_bundle_has(
    model: edge.Model, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole layers with their bits, their chunks and their positions, and the head on the CPU."""

    def plan(*words: str) -> dict[str, Any]:
        found = ["plan", str(model.bundle.folder), "--prompt", "40", "--generate", "4", *words]
        assert main([*found, "--json", "--quiet"]) == 0
        made: dict[str, Any] = json.loads(capsys.readouterr().out)
        return made

    record = model.bundle.manifest.npu
    assert record is not None
    made, named, on_npu = plan(), plan("--mode", "w4a16"), plan("--decode", "npu")
    layers = len(model.bundle.graph.caches)
    assert (made["mode"], made["chunk"]) == ("w8a16", record.rows)
    assert made["subgraphs"] == {"shared": layers, "total": layers}
    assert made["memory"]["npu_weight_bytes"] == 2 * named["memory"]["npu_weight_bytes"]
    assert on_npu["memory"]["decode_weight_bytes"] > made["memory"]["npu_weight_bytes"]
    words = ["plan", str(model.bundle.folder), "--prompt", str(record.positions), "--generate", "1"]
    assert main(words) == UsageError.exit_code
    assert f"holds {record.positions}" in capsys.readouterr().err


def test_what_others_put_in_the_cache_is_taken_over(model: edge.Model) -> None:
    """After a rewind, and after another program's tokens: the codes are the cache's again."""
    ids = token_ids().astype(np.int32)
    reference = edge.load(model.bundle.folder, target="ref", cache_format="f32").program
    want = program(model).run_prompt(ids[:13], model.session().cache, 1)
    cache = model.session().cache
    program(model).run_prompt(ids[::-1][:10].copy(), cache, 1)
    cache.rewind(0)
    cache.reserve(13)
    reference.run(ids[:10], 10, cache, 0)
    for token in ids[10:13]:
        made = program(model).run(token[None], 1, cache, 1)
    assert divergence(want, made) < 2e-3  # ten of the keys are those of exact weights
    cache.rewind(12)
    again = program(model).run(ids[12:13], 1, cache, 1)
    np.testing.assert_allclose(again, made, atol=1e-3)


def test_more_tokens_than_the_layers_hold(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("llama", "npu:ort", mode="w8a16", form="layers", positions=40)
    model = whole(bundle)
    assert model.context == 40
    with pytest.raises(UsageError, match=r"context 41, .* up to 40"):
        edge.load(bundle, decode="npu:ort", context=41)
    with pytest.raises(PromptTooLong, match="41 tokens"):
        model.logits(np.resize(token_ids(), 41))
    drawn = model.stream(np.resize(token_ids(), 38), max_tokens=9, sampling=edge.Sampling.greedy())
    assert len(list(drawn)) <= 4
    prompts = whole(bundle, decode="ref")
    assert prompts.context == 64
    with pytest.raises(PromptTooLong, match=r"41 tokens, the NPU's layers hold 40; .*positions"):
        prompts.logits(np.resize(token_ids(), 41))


def test_layers_that_the_htp_cannot_hold(tmp_path: Path) -> None:
    plan = plan_npu(["npu:ort"], 32, form="layers")
    synthesize(VARIANTS["bitnet_ternary"].config, tmp_path / "source", seed=0, dtype="f32")
    with pytest.raises(UnsupportedMath, match=r"int8 .* a scale of its own.*--npu-form pieces"):
        convert(tmp_path / "source", tmp_path / "b.lutra", npu=plan)


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("npu:ort", {"mode": "w8a8"}, "activations of 8 bits"),
        ("npu:ort", {"pruned": 0.5}, "--prune-outliers"),
        ("npu:ort", {"smoothing": 0.5}, "--smooth"),
        ("npu:ort", {"positions": 0}, "--npu-positions 0"),
        ("QCS6490", {}, "QCS6490: HTP v68 multiplies no two"),
    ],
)
def test_plans_that_make_no_sense(name: str, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        plan_npu([name], 32, form="layers", **settings)


def test_the_story_goes_on_and_is_close_to_float(make_bundle: MakeBundle, stories: Path) -> None:
    bundle = make_bundle("stories", "npu:ort", checkpoint=stories, form="layers")
    model = whole(bundle)
    text = model.generate("Once upon a time", max_tokens=20, sampling=edge.Sampling.greedy())
    assert text.startswith(", there was a little girl named Lily.")
    exact = edge.load(bundle, target="ref")
    tale = exact.generate("Once upon a time", max_tokens=150, sampling=edge.Sampling(seed=1))
    ids = exact.encode(tale)
    assert divergence(exact.logits(ids), model.logits(ids)) < 0.2
