"""A check that a target really runs: a tiny random model, written, opened, and compared.

The expected logits come from a straight-line float64 computation that shares no code with the
interpreter or the graph, so the reference is checked too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.backend import backend_for
from edge.bundle import Bundle, verify
from edge.bundle_writer import BundleWriter
from edge.formats import F32
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
from edge.target import Target
from edge.version import VERSION

VOCABULARY, WIDTH, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, EPS = 32, 24, 4, 2, 6, 40, 1e-5
TOKENS = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5)
TOLERANCE = 1e-4

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
class Outcome:
    """What a target's check found: `error` is the largest relative difference of a logit."""

    passed: bool
    error: float


def check_target(target: Target) -> Outcome:
    """Run the tiny model on a target. Raises what opening and running it raises."""
    weights = _random_weights()
    expected = _straight_line(weights)
    with tempfile.TemporaryDirectory() as folder:
        bundle = _write(Path(folder) / "selftest.lutra", weights)
        verify(bundle)
        program = backend_for(target).load(bundle, target)
        cache = KVCache(bundle.graph.caches, bundle.graph.context)
        logits = prefill(program, cache, TOKENS[:-1], all_logits=True)
        last = prefill(program, cache, TOKENS[-1:])
        del program, bundle  # lets go of the mapped file before the folder goes
    found = np.concatenate([logits, last])
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    return Outcome(error < TOLERANCE, error)


def tiny_graph() -> Graph:
    """One layer with grouped-query attention, RoPE and a gated feed-forward."""
    return Graph(
        rows=1,
        logit_rows=1,
        vocabulary=VOCABULARY,
        context=16,
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


def _random_weights() -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    weights = {
        name: generator.normal(size=shape).astype(np.float32)
        for name, (shape, _) in _SHAPES.items()
    }
    weights["frequencies"] = np.array([1.0, 0.1, 0.01], np.float32)
    return weights


def _write(out: Path, weights: dict[str, NDArray[np.float32]]) -> Bundle:
    tensors = {name: (F32, values.shape) for name, values in weights.items()}
    with BundleWriter(out, tensors, key="selftest") as writer:
        for name, values in weights.items():
            writer.write(name, {"values": values})
        manifest = Manifest(
            lutra=VERSION,
            name="selftest",
            model_type="selftest",
            config={},
            tokenizer=TokenizerRecord(),
            generation=GenerationDefaults(),
            graph=tiny_graph(),
            graph_sizes=(GraphSize("decode", 1, 1),),
            tensors={name: TensorRecord(F32, 0.0) for name in weights},
            files=writer.records(),
        )
        writer.finish(manifest.to_text())
    return Bundle.open(out)


def _straight_line(stored: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    """The same model in float64, token by token, with explicit loops over heads."""
    w = {name: values.astype(np.float64) for name, values in stored.items()}
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
