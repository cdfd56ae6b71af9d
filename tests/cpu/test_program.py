"""Whole models on the CPU against the reference: every piece of math, every format, any threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edge
from converter.convert import convert
from converter.synth import synthesize
from cpu.backend import BACKEND
from cpu.kernels import gemm
from cpu.lowering import Lowering
from cpu.memory import Memory
from edge.backend import PicksBest
from edge.errors import PromptTooLong
from edge.generate import chunk_for, prefill
from edge.graph import Linear
from edge.kvcache import CacheFormat, KVCache
from edge.model import Model
from edge.reference import FUNCTIONS, Step, WeightCache
from edge.target import this_machine
from tests.checkpoints import make_checkpoint
from tests.cpu.model_jobs import TEXT, drawn_text
from tests.golden.variants import VARIANTS, token_ids

Logits = NDArray[np.float32]

# Code for AMX runs emulated where the machine has none (see `tests.cpu.amx`).
AMX = pytest.param("cpu:x86_64,amx", marks=pytest.mark.amx)
PLAIN = [str(t) for t in BACKEND.targets(this_machine()) if "amx" not in t.features]
BEST = PLAIN[0] if PLAIN else ""
FASTEST, TARGETS = [AMX, BEST], [AMX, *PLAIN]

pytestmark = pytest.mark.skipif(not PLAIN, reason="no code generator for this machine")

# Relative to the largest logit. Few rows take activations as 16-bit integers; many rows on a
# matrix unit take both sides as bfloat16.
FLOAT = 2e-5
FEW_ROWS = 3e-3
MATRIX = 6e-2

FORMATS = [
    "w1g32",
    "w1g64a",
    "w1gc",
    "w2g32",
    "w2g64a",
    "w3g64",
    "w3g32a",
    "w4g32",
    "w4g64a",
    "w4g128",
    "w4gc",
    "w8gc",
    "w8g64",
    "w8g32a",
    "ternary",
    "ternaryg64",
    "f16",
    "f32",
]


def distance(ours: Logits, theirs: Logits) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def load(bundle: Path, **settings: Any) -> Model:
    """With keys and values as exact as the reference's."""
    return edge.load(bundle, **{"target": BEST, "cache_format": "f32"} | settings)


def one_by_one(model: Model, ids: NDArray[np.integer], cache: KVCache | None = None) -> Logits:
    cache = cache or model.session().cache
    return np.concatenate([prefill(model.program, cache, [int(i)]) for i in ids])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model in a format; widths are no multiples of anything."""
    folder = tmp_path_factory.mktemp("formats")
    source = make_checkpoint(
        folder / "source",
        hidden_size=72,
        intermediate_size=172,
        head_dim=20,
        max_position_embeddings=400,
    )

    def make(form: str) -> Path:
        out = folder / f"{form}.lutra"
        if not out.exists():
            convert(source, out, weights=form, head=form)
        return out

    return make


@pytest.mark.parametrize("target", FASTEST)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_model_in_float_and_four_bits(name: str, target: str, tmp_path: Path) -> None:
    variant = VARIANTS[name]
    synthesize(variant.config, tmp_path / "source", seed=variant.seed, dtype="f32")
    for form, bound in (("f32", FLOAT), ("w4g32", FEW_ROWS)):
        out = tmp_path / form
        convert(tmp_path / "source", out, weights=form, head=form, context=variant.context)
        expected = edge.load(out, target="ref").logits(token_ids())
        model = load(out, target=target)
        assert distance(one_by_one(model, token_ids()), expected) < bound
        many = model.logits(token_ids())
        assert distance(many, expected) < (FLOAT if form == "f32" else MATRIX)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_format_on_every_target(
    form: str, target: str, bundle: Callable[[str], Path]
) -> None:
    ids = np.random.default_rng(0).integers(0, 300, 40)
    expected = edge.load(bundle(form), target="ref").logits(ids)
    model = load(bundle(form), target=target)
    bound = FLOAT if form.startswith("f") else FEW_ROWS
    assert distance(one_by_one(model, ids), expected) < bound
    cache = model.session().cache
    few = np.concatenate(
        [prefill(model.program, cache, ids[i : i + 9], all_logits=True) for i in range(0, 40, 9)]
    )
    assert distance(few, expected) < bound
    assert distance(model.logits(ids), expected) < (bound if form.startswith("f") else MATRIX)


@pytest.mark.parametrize("target", FASTEST)
@pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 17, 31, 32, 33, 255, 256, 257, 400])
def test_prompts_of_any_length(count: int, target: str, bundle: Callable[[str], Path]) -> None:
    ids = np.random.default_rng(count).integers(0, 300, count)
    expected = edge.load(bundle("w4g32"), target="ref").logits(ids)
    model = load(bundle("w4g32"), target=target)
    assert distance(model.logits(ids), expected) < MATRIX
    last = prefill(model.program, model.session().cache, ids)
    assert distance(last, expected[-1:]) < MATRIX


@pytest.mark.parametrize("target", FASTEST)
@pytest.mark.parametrize("threads", range(1, len(os.sched_getaffinity(0)) + 1))
def test_any_number_of_threads_gives_the_same(
    threads: int, target: str, bundle: Callable[[str], Path]
) -> None:
    ids = np.random.default_rng(1).integers(0, 300, 50)
    alone = load(bundle("w4g32"), target=target, threads=1)
    team = load(bundle("w4g32"), target=target, threads=threads)
    assert np.array_equal(alone.logits(ids), team.logits(ids))
    assert np.array_equal(one_by_one(alone, ids), one_by_one(team, ids))


@pytest.mark.parametrize("cache_format", ["f16", "int8"])
@pytest.mark.parametrize("target", TARGETS)
def test_smaller_caches_are_as_the_references(
    target: str, cache_format: CacheFormat, bundle: Callable[[str], Path]
) -> None:
    ids = np.random.default_rng(2).integers(0, 300, 300)
    expected = edge.load(bundle("f32"), target="ref", cache_format=cache_format).logits(ids)
    model = edge.load(bundle("f32"), target=target, cache_format=cache_format)
    assert distance(model.logits(ids), expected) < 1e-3
    assert distance(one_by_one(model, ids), expected) < 1e-3


@pytest.mark.parametrize("cache_format", ["f16", "int8"])
def test_a_session_gives_what_a_fresh_one_does(
    cache_format: CacheFormat, bundle: Callable[[str], Path]
) -> None:
    ids = np.random.default_rng(2).integers(0, 300, 20)
    model = edge.load(bundle("f32"), target=BEST, cache_format=cache_format)
    session = model.session()
    for _ in range(2):  # the second time from what the session holds
        greedy = edge.Sampling.greedy()
        drawn = model.stream(list(ids), max_tokens=5, sampling=greedy, session=session)
        tokens = [record.token for record in drawn]
    fresh = model.stream(list(ids), max_tokens=5, sampling=greedy)
    assert tokens == [record.token for record in fresh]


@pytest.mark.parametrize("form", ["w4g32", "f32"])
@pytest.mark.parametrize("target", [*TARGETS, "ref"])
def test_the_best_token_is_that_of_the_logits(
    target: str, form: str, bundle: Callable[[str], Path]
) -> None:
    ids = np.random.default_rng(7).integers(0, 300, 30).astype(np.int32)
    model = load(bundle(form), target=target)
    program = model.program
    assert isinstance(program, PicksBest)
    for count in (1, 2, 9, 30):  # every table
        size = chunk_for(program, count)
        chunk = np.pad(ids[:count], (0, size - count))
        logits = program.run(chunk, count, model.session().cache, 1)[0]
        cache = model.session().cache
        token, logit = program.best(chunk, count, cache)
        assert (token, logit) == (int(np.argmax(logits)), float(logits.max()))
        assert cache.length == count


@pytest.mark.parametrize("target", [*TARGETS, "ref"])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_run_makes_room_for_its_tokens(
    count: int, target: str, bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever calls a program without reserving: nothing is written past a cache's end."""
    monkeypatch.setattr("edge.kvcache._FIRST_CAPACITY", 4)
    model = load(bundle("w4g32"), target=target, context=36)
    ids = np.random.default_rng(8).integers(0, 300, 34 + count).astype(np.int32)
    cache = model.session().cache
    for first, rows in ((0, 4), (4, count)):
        chunk = np.pad(ids[first : first + rows], (0, chunk_for(model.program, rows) - rows))
        logits = model.program.run(chunk, rows, cache, 1)
    assert cache.capacity >= cache.length == 4 + count
    assert distance(logits, model.logits(ids[: 4 + count])[-1:]) < MATRIX
    chunk = np.pad(ids[:33], (0, chunk_for(model.program, 33) - 33))
    with pytest.raises(PromptTooLong, match="the context holds 36"):
        model.program.run(chunk, 33, cache, 1)


@pytest.mark.parametrize(
    ("name", "form", "matrix_unit", "norms"),
    [
        ("llama", "w4g32", False, {"norm_quantize_b32"}),
        ("llama", "f32", False, {"norm"}),
        ("llama", "w4g32", True, {"norm_bfloat16", "norm_quantize_b32"}),  # the head's is the last
        ("llama", "f32", True, {"norm"}),
        ("qwen3", "w4g32", False, {"norm_quantize_b32", "norm"}),  # of heads
        ("qwen3", "w4g32", True, {"norm_bfloat16", "norm_quantize_b32", "norm"}),
        # what is rounded to 8 bits
        ("bitnet_ternary", "w4g32", False, {"norm_quantize_b32", "norm"}),
    ],
)
def test_norms_are_fused_where_only_converted_rows_are_read(
    name: str, form: str, matrix_unit: bool, norms: set[str], tmp_path: Path
) -> None:
    kernels = lowered_kernels(name, form, matrix_unit, tmp_path)
    assert {kernel for kernel in kernels if kernel.startswith("norm")} == norms


@pytest.mark.parametrize(
    ("name", "form", "lone"),
    [
        ("llama", "w4g32", set()),
        ("llama", "f32", {"add", "gate_silu"}),
        ("gemma2", "w4g32", {"add"}),  # of norms
    ],
)
def test_sums_and_gates_are_made_with_projections_on_a_matrix_unit(
    name: str, form: str, lone: set[str], tmp_path: Path
) -> None:
    kernels = lowered_kernels(name, form, True, tmp_path)
    assert {"add", "gate_silu", "gate_gelu_tanh"} & kernels == lone


def lowered_kernels(name: str, form: str, matrix_unit: bool, folder: Path) -> set[str]:
    """What a chunk of a tiny model calls."""
    variant = VARIANTS[name]
    synthesize(variant.config, folder / "source", seed=variant.seed, dtype="f32")
    convert(folder / "source", folder / "m", weights=form, head=form, context=variant.context)
    bundle = edge.load(folder / "m", target="ref").bundle
    lowering = Lowering(bundle, Memory(), 2, 256, "f32", matrix_unit=matrix_unit)
    return {call.kernel.name for call in lowering.run().calls}


def test_attention_of_many_rows_is_on_tiles_behind_what_is_appended(
    bundle: Callable[[str], Path],
) -> None:
    """Threads may share a head, so they meet before any of them reads the cache."""
    model = edge.load(bundle("f32"), target="ref")
    for matrix_unit in (True, False):
        lowering = Lowering(model.bundle, Memory(), 3, 256, "f16", matrix_unit=matrix_unit)
        calls = lowering.run().calls
        names = [call.kernel.name for call in calls]
        layers = len(model.bundle.graph.caches)
        assert names.count("attention_f16") == (0 if matrix_unit else layers)
        assert names.count("tile_attention_f16") == (layers if matrix_unit else 0)
        appended = [call.barrier for call in calls if call.kernel.name == "append_f16"]
        assert appended == [True] * (layers if matrix_unit else 0)


def test_tables_are_made_once_for_all_that_read_an_input(tmp_path: Path) -> None:
    """By all threads together: they meet before any of them looks up."""
    variant = VARIANTS["llama"]
    synthesize(variant.config, tmp_path / "source", seed=variant.seed, dtype="f32")
    convert(tmp_path / "source", tmp_path / "m", weights="w2g32", head="w4g32")
    bundle = edge.load(tmp_path / "m", target="ref").bundle
    for rows, used in ((1, True), (16, False)):
        lowering = Lowering(bundle, Memory(), 2, rows, "f32", matrix_unit=False, lookup_bits=(1, 2))
        calls = lowering.run().calls
        names = [call.kernel.name for call in calls]
        assert ("lookup_w2g32" in names) == used
        if used:
            linears = [op for op in bundle.graph.ops() if isinstance(op, Linear)]
            read = {op.x for op in linears if bundle.tensor(op.weight).form.bits == 2}
            assert names.count("tables") == len(read) < names.count("lookup_w2g32")
            assert names.count("lookup_w2g32") + names.count("linear_w4g32") == len(linears)
            assert all(call.barrier for call in calls if call.kernel.name == "tables")


def test_sessions_take_turns_as_one_of_them_grows(
    bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step has the addresses of the last cache it saw, and tables that all caches share grow."""
    monkeypatch.setattr("edge.kvcache._FIRST_CAPACITY", 256)
    ids = np.random.default_rng(6).integers(0, 300, 300)
    model = load(bundle("f32"))
    expected = edge.load(bundle("f32"), target="ref").logits(ids)
    short, long = model.session().cache, model.session().cache
    steps = one_by_one(model, ids[:3], short)
    assert distance(steps, expected[:3]) < FLOAT
    assert distance(prefill(model.program, long, ids, all_logits=True), expected) < FLOAT
    garbage = [np.full((1 << 14), np.nan, np.float32) for _ in range(64)]  # where the old ones were
    assert distance(one_by_one(model, ids[3:6], short), expected[3:6]) < FLOAT
    del garbage


def test_smaller_caches_change_the_predictions_of_a_trained_model_little(
    stories: Path, tmp_path: Path
) -> None:
    """By 1e-7 in float16, which is the default, and 1e-4 in int8, nearly all of it by the keys."""
    from apps.eval import kl_divergence, log_softmax

    convert(stories, tmp_path / "m.lutra", weights="w8gc", head="w8gc")
    reference = edge.load(tmp_path / "m.lutra", target="ref")
    ids = np.array(reference.encode(TEXT))
    expected = log_softmax(reference.logits(ids))
    for cache_format, bound in (("f32", 1e-6), ("f16", 1e-6), ("int8", 5e-4)):
        model = edge.load(tmp_path / "m.lutra", target=BEST, cache_format=cache_format)
        kl = kl_divergence(expected, log_softmax(one_by_one(model, ids))).mean()
        assert kl < bound


def test_int8_keys_and_values_change_little_over_the_whole_context(
    stories: Path, tmp_path: Path
) -> None:
    """Of text that the model draws. Of weights at 4 bits and fewer it is 8e-4 and more."""
    from apps.eval import kl_divergence, log_softmax

    for weights in ("f32", "w8gc"):
        convert(stories, tmp_path / weights, weights=weights, head=weights)
    text = drawn_text(edge.load(tmp_path / "f32", target=BEST))
    for weights in ("f32", "w8gc"):
        reference = edge.load(tmp_path / weights, target="ref")
        expected = log_softmax(reference.logits(text))
        short = edge.load(tmp_path / weights, target=BEST, cache_format="int8")
        assert kl_divergence(expected, log_softmax(short.logits(text))).mean() < 1e-3


@pytest.mark.parametrize("target", FASTEST)
def test_predictions_of_a_trained_model_stay_those_of_the_reference(
    target: str, stories: Path, tmp_path: Path
) -> None:
    from apps.eval import kl_divergence, log_softmax

    for form in ("w8gc", "w4g32", "w3g32", "w2g64", "ternary", "w1g32", "w1g64a"):
        convert(stories, tmp_path / form, weights=form, head=form)
        reference = edge.load(tmp_path / form, target="ref")
        ids = np.array(reference.encode(TEXT))
        model = load(tmp_path / form, target=target)
        expected = log_softmax(reference.logits(ids))
        assert kl_divergence(expected, log_softmax(one_by_one(model, ids))).mean() < 1e-5
        assert kl_divergence(expected, log_softmax(model.logits(ids))).mean() < 1e-3


def test_products_in_bfloat16_change_the_predictions_of_a_trained_model_little(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the twin of a matrix unit, whose head takes integers: 4e-4 of activations at 2 bits.

    With weights that bfloat16 rounds, which their scales avoid, it would be 1e-3.
    """
    from apps.eval import kl_divergence, log_softmax

    convert(stories, tmp_path / "m.lutra", weights="w2g64")
    model = edge.load(tmp_path / "m.lutra", target="ref")
    text = drawn_text(edge.load(tmp_path / "m.lutra", target=BEST))
    expected = log_softmax(model.logits(text))
    head, plain = model.bundle.graph.last.out, FUNCTIONS[Linear]

    def on_tiles(op: Linear, step: Step, weights: WeightCache) -> NDArray[np.float32]:
        if op.out == head:
            return plain(op, step, weights)
        assert op.bias is None
        return gemm.gemm(weights.dense(op.weight), step.values[op.x])

    monkeypatch.setitem(FUNCTIONS, Linear, on_tiles)
    assert kl_divergence(expected, log_softmax(model.logits(text))).mean() < 6e-4
