from __future__ import annotations

import pytest

from converter.models import build_model
from converter.presets import PRESETS
from edge.errors import BadGraph
from edge.graph import Graph, Int8
from edge.selftest import tiny_graph
from npu.soc.published import BITNET, QWEN
from npu.soc.work import graph_work
from tests.converter.models.published import PUBLISHED


@pytest.mark.parametrize(("preset", "work"), [("qwen1.5-1.8b", QWEN), ("bitnet-2b", BITNET)])
def test_published_shapes_are_those_of_the_presets(preset: str, work: object) -> None:
    """A graph and a shape written by hand say the same, also where inputs are rounded apart."""
    graph = build_model(PRESETS[preset]).graph
    assert any(isinstance(op, Int8) for op in graph.ops()) == (preset == "bitnet-2b")
    assert graph_work(QWEN.name if work is QWEN else BITNET.name, graph) == work


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_of_all_layers_are_those_of_the_tensors(name: str) -> None:
    graph = build_model(PUBLISHED[name].config).graph
    work = graph_work(name, graph)
    linear = [t.shape for t in graph.tensors if t.role == "linear"]
    assert work.weights == sum(out * width for out, width in linear)
    assert work.kv_values == sum(2 * c.kv_heads * c.head_dim for c in graph.caches)


def test_a_graph_without_layers_is_refused() -> None:
    graph = tiny_graph()
    ends = Graph(**{**vars(graph), "subgraphs": (graph.subgraphs[0], graph.subgraphs[-1])})
    with pytest.raises(BadGraph, match="no layers"):
        graph_work("headless", ends)
    less = Graph(**{**vars(graph), "subgraphs": graph.subgraphs[:2] + graph.subgraphs[-1:]})
    with pytest.raises(BadGraph, match="layer 0 has no attention, feed_forward, output"):
        graph_work("cut", less)
