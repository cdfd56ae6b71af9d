"""A check that a target really runs: tiny random models, written, opened, and compared.

One in float and one in each kind of quantized weights, run row by row, a few rows at a time, and
many at once, which is what brings in a matrix unit.

The expected logits come from a straight-line float64 computation that shares no code with the
interpreter or the graph, so the reference is checked too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.backend import Program, backend_for
from edge.bundle import Bundle, verify
from edge.bundle_writer import BundleWriter
from edge.formats import F32, Format
from edge.generate import prefill
from edge.graph import (
    Add,
    Attention,
    Cache,
    Embed,
    Gate,
    Graph,
    Linear,
    Norm,
    Op,
    Role,
    Rope,
    Subgraph,
    Take,
    Tensor,
)
from edge.kvcache import KVCache
from edge.manifest import (
    GenerationDefaults,
    GraphSize,
    Manifest,
    TensorRecord,
    TokenizerRecord,
)
from edge.planes import Quantized, pack
from edge.target import Target
from edge.version import VERSION

VOCABULARY, WIDTH, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, EPS = 32, 24, 4, 2, 6, 40, 1e-5
TOKENS = tuple(int(token) for token in (7 * np.arange(36) ** 2 + 3) % VOCABULARY)

# Rows of each run: few of them are multiplied as integers of 16 bits, many at once in bfloat16
# where there is a matrix unit for it.
FEW, MANY = (9, 2, 1, 1), (len(TOKENS),)
FLOAT_TOLERANCE, FEW_TOLERANCE, MANY_TOLERANCE = 1e-4, 3e-3, 6e-2

# Every number of bits, with zeros and without, a scale for a group, a row or all.
FORMATS = ("f32", "w1g32a", "w2g32", "w3g32a", "w4g64", "w8gca", "ternary")

_SHAPES: dict[str, tuple[tuple[int, ...], Role]] = {
    "embed": ((VOCABULARY, WIDTH), "head"),
    "norm_1": ((WIDTH,), "vector"),
    "q": ((HEADS * HEAD_DIM, WIDTH), "linear"),
    "k": ((KV_HEADS * HEAD_DIM, WIDTH), "linear"),
    "v": ((KV_HEADS * HEAD_DIM, WIDTH), "linear"),
    "frequencies": ((HEAD_DIM // 2,), "vector"),
    "o": ((WIDTH, HEADS * HEAD_DIM), "linear"),
    "norm_2": ((WIDTH,), "vector"),
    "gate": ((FEED_FORWARD, WIDTH), "linear"),
    "up": ((FEED_FORWARD, WIDTH), "linear"),
    "down": ((WIDTH, FEED_FORWARD), "linear"),
    "norm_3": ((WIDTH,), "vector"),
}


@dataclass(frozen=True)
class Trial:
    """One model run one way: the largest relative difference of a logit, and what is allowed."""

    form: str
    rows: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error < self.tolerance


@dataclass(frozen=True)
class Outcome:
    """What a target's check found."""

    trials: tuple[Trial, ...]

    @property
    def passed(self) -> bool:
        return all(trial.passed for trial in self.trials)

    def largest(self, *, quantized: bool) -> float:
        """The largest error of the model in float, or of the others."""
        return max(trial.error for trial in self.trials if (trial.form != FORMATS[0]) == quantized)


def check_target(target: Target) -> Outcome:
    """Run the tiny models on a target. Raises what opening and running them raises."""
    return Outcome(tuple(trial for text in FORMATS for trial in _check_format(target, text)))


def _check_format(target: Target, text: str) -> Iterator[Trial]:
    form, generator = Format.parse(text), np.random.default_rng(0)
    stored = {name: _random_tensor(form, name, generator) for name in _SHAPES}
    expected = _straight_line({name: tensor.values for name, tensor in stored.items()})
    largest = np.abs(expected).max()
    with tempfile.TemporaryDirectory() as folder:
        bundle = _write(Path(folder) / "selftest.lutra", stored)
        verify(bundle)
        program = backend_for(target).load(bundle, target)
        for rows, sizes, most in (("few", FEW, FEW_TOLERANCE), ("many", MANY, MANY_TOLERANCE)):
            found = _run(program, bundle, sizes)
            error = float(np.abs(found - expected[: len(found)]).max() / largest)
            yield Trial(text, rows, error, most if form.quantized else FLOAT_TOLERANCE)
        del program, bundle  # lets go of the mapped file before the folder goes


def _run(program: Program, bundle: Bundle, sizes: Sequence[int]) -> NDArray[np.float32]:
    """Logits of the first tokens, in runs of these sizes."""
    cache, logits = KVCache(bundle.graph.caches, bundle.graph.context), []
    for size in sizes:
        tokens = TOKENS[cache.length : cache.length + size]
        logits.append(prefill(program, cache, tokens, all_logits=True))
    return np.concatenate(logits)


def tiny_graph(context: int = 16) -> Graph:
    """One layer with grouped-query attention, RoPE and a gated feed-forward."""
    return Graph(
        rows=1,
        logit_rows=1,
        vocabulary=VOCABULARY,
        context=context,
        caches=(Cache(KV_HEADS, HEAD_DIM),),
        tensors=tuple(Tensor(name, shape, role) for name, (shape, role) in _SHAPES.items()),
        subgraphs=tuple(_subgraphs()),
    ).validate()


def _subgraphs() -> Iterator[Subgraph]:
    yield Subgraph("embed", None, (Embed("x", "embed"),))
    qkv: list[Op] = [Norm("h", "x", "norm_1", EPS)]
    yield Subgraph("qkv", 0, (*qkv, *(Linear(name, "h", name) for name in "qkv")))
    turned = [Rope(f"{name}_turned", name, "frequencies", HEAD_DIM) for name in "qk"]
    attend = Attention("a", "q_turned", "k_turned", "v", 0, HEAD_DIM**-0.5)
    yield Subgraph("attention", 0, (*turned, attend))
    yield Subgraph("output", 0, (Linear("o", "a", "o"), Add("y", "x", "o")))
    made: tuple[Op, ...] = (
        Norm("n", "y", "norm_2", EPS),
        Linear("gate", "n", "gate"),
        Linear("up", "n", "up"),
        Gate("gated", "gate", "up", "silu"),
        Linear("down", "gated", "down"),
        Add("z", "y", "down"),
    )
    yield Subgraph("feed_forward", 0, made)
    head = (Take("t", "z"), Norm("m", "t", "norm_3", EPS), Linear("logits", "m", "embed"))
    yield Subgraph("head", None, head)


@dataclass(frozen=True)
class _Stored:
    """A tensor as it is written, and the numbers that it stands for."""

    form: Format
    parts: dict[str, NDArray[Any]]
    values: NDArray[np.float64]


def _random_tensor(form: Format, name: str, generator: np.random.Generator) -> _Stored:
    """A tensor of the model; matrices are of the format, vectors in float32."""
    shape, role = _SHAPES[name]
    if role == "vector" or not form.quantized:
        values = generator.normal(size=shape).astype(np.float32)
        if name == "frequencies":
            values = np.array([1.0, 0.1, 0.01], np.float32)
        return _Stored(F32, {"values": values}, values.astype(np.float64))
    rows, width = shape
    groups = form.group_count(width)
    codes = generator.integers(0, form.levels, shape, np.uint8)
    held = (1, 1) if form.granularity == "tensor" else (rows, groups)
    kind = np.float16 if form.granularity == "group" else np.float32
    scales = (generator.uniform(1, 3, held) / form.levels).astype(kind)
    zeros = None
    if form.asymmetric:
        most = form.levels * form.zero_parts
        zeros = generator.integers(0, most, (rows, groups), np.uint8)
    group = np.arange(width) // form.group_size(width)
    zero = np.array(form.zero)
    if zeros is not None:
        zero = ((zeros - float(form.zero_first)) / form.zero_parts)[:, group]
    spread = np.broadcast_to(scales.astype(np.float64), (rows, groups))[:, group]
    meant = (codes.astype(np.float64) - zero) * spread
    return _Stored(form, pack(form, Quantized(codes, scales, zeros)), meant)


def _write(out: Path, stored: Mapping[str, _Stored]) -> Bundle:
    tensors = {name: (tensor.form, _SHAPES[name][0]) for name, tensor in stored.items()}
    with BundleWriter(out, tensors, key="selftest") as writer:
        for name, tensor in stored.items():
            writer.write(name, tensor.parts)
        manifest = Manifest(
            lutra=VERSION,
            name="selftest",
            model_type="selftest",
            config={},
            tokenizer=TokenizerRecord(),
            generation=GenerationDefaults(),
            graph=tiny_graph(len(TOKENS)),
            graph_sizes=(GraphSize("decode", 1, 1),),
            tensors={name: TensorRecord(tensor.form, 0.0) for name, tensor in stored.items()},
            files=writer.records(),
        )
        writer.finish(manifest.to_text())
    return Bundle.open(out)


def _straight_line(w: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The same model in float64, token by token, with explicit loops over heads."""
    keys: list[NDArray[np.float64]] = []
    values: list[NDArray[np.float64]] = []
    logits = []
    for position, token in enumerate(TOKENS):
        x = w["embed"][token]
        h = _norm(x, w["norm_1"])
        query = _turn(w["q"] @ h, position, w["frequencies"])
        keys.append(_turn(w["k"] @ h, position, w["frequencies"]))
        values.append((w["v"] @ h).reshape(KV_HEADS, HEAD_DIM))
        attended = [
            _attend(query[head], keys, values, head * KV_HEADS // HEADS) for head in range(HEADS)
        ]
        y = x + w["o"] @ np.concatenate(attended)
        n = _norm(y, w["norm_2"])
        gate = w["gate"] @ n
        z = y + w["down"] @ (gate / (1 + np.exp(-gate)) * (w["up"] @ n))
        logits.append(w["embed"] @ _norm(z, w["norm_3"]))
    return np.array(logits)


def _norm(x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    normed: NDArray[np.float64] = x / np.sqrt((x * x).mean() + EPS) * weight
    return normed


def _turn(
    x: NDArray[np.float64], position: int, frequencies: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Rotate every head as complex numbers, [heads, head_dim]."""
    heads = x.reshape(-1, HEAD_DIM)
    half = HEAD_DIM // 2
    turned = (heads[:, :half] + 1j * heads[:, half:]) * np.exp(1j * position * frequencies)
    return np.concatenate([turned.real, turned.imag], axis=1)


def _attend(
    query: NDArray[np.float64],
    keys: list[NDArray[np.float64]],
    values: list[NDArray[np.float64]],
    kv_head: int,
) -> NDArray[np.float64]:
    scores = np.array([query @ key[kv_head] for key in keys]) / np.sqrt(HEAD_DIM)
    weights = np.exp(scores - scores.max())
    attended: NDArray[np.float64] = weights @ np.array([v[kv_head] for v in values]) / weights.sum()
    return attended
