"""Static pieces: what an NPU graph holds of each architecture."""

from __future__ import annotations

from itertools import pairwise

import pytest

from converter.models import build_model
from edge.graph import Attention, Graph, Linear
from edge.pieces import Float, Piece, segments, static_pieces
from tests.golden.variants import VARIANTS


def graph(name: str = "llama") -> Graph:
    return build_model(VARIANTS[name].config).graph


def test_a_layer_has_three_pieces() -> None:
    made = [p for p in static_pieces(graph()) if p.name.startswith("layers.1.")]
    assert [p.name for p in made] == [f"layers.1.{k}" for k in ("qkv", "output", "feed_forward")]
    qkv, output, feed_forward = made
    assert qkv.inputs == ("layers.1.attention_norm",)
    assert qkv.outputs == ("layers.1.q", "layers.1.k", "layers.1.v")
    assert output.outputs == ("layers.1.o",)
    assert [op.kind for op in feed_forward.ops] == ["linear", "linear", "gate", "linear"]
    assert feed_forward.outputs == ("layers.1.down",)


def test_a_float_gate_parts_the_feed_forward() -> None:
    made = static_pieces(graph(), ["layers.1.gated"])
    names = [p.name for p in made if "feed_forward" in p.name]
    assert names == [
        "layers.0.feed_forward",
        "layers.1.feed_forward",
        "layers.1.feed_forward.1",
        "layers.2.feed_forward",
    ]
    first = next(p for p in made if p.name == "layers.1.feed_forward")
    assert first.outputs == ("layers.1.gate", "layers.1.up")


@pytest.mark.parametrize("name", VARIANTS)
def test_segments_are_the_graph_in_order(name: str) -> None:
    whole = graph(name)
    made = segments(whole)
    ops = [op for segment in made for op in segment.ops]
    head = whole.subgraphs[-1].ops
    assert ops == [op for op in whole.ops() if op not in head]
    assert not any(isinstance(a, Float) and isinstance(b, Float) for a, b in pairwise(made))
    for segment in made:
        linear = [isinstance(op, Linear) for op in segment.ops]
        assert any(linear) == isinstance(segment, Piece)
        if isinstance(segment, Float):
            assert sum(isinstance(op, Attention) for op in segment.ops) <= 1
