from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edge import graph as graphs
from edge.errors import BadGraph
from edge.graph import Add, Graph, Linear, Norm, Op, Subgraph, Tensor
from edge.selftest import tiny_graph


def with_op(graph: Graph, index: int, op: Op) -> Graph:
    """The graph with the last op of a subgraph replaced."""
    changed = list(graph.subgraphs)
    changed[index] = replace(changed[index], ops=(*changed[index].ops[:-1], op))
    return replace(graph, subgraphs=tuple(changed))


def test_json_round_trips_at_any_size() -> None:
    data = json.loads(json.dumps(graphs.to_json(tiny_graph())))
    assert graphs.from_json(data, 1, 1) == tiny_graph()
    assert graphs.from_json(data, 8, 0) == tiny_graph().resized(8, 0)


def test_shapes_follow_the_chunk() -> None:
    shapes = tiny_graph().resized(8, 3).shapes()
    assert shapes["x"] == (8, 24)
    assert shapes["gate"] == (8, 40)
    assert shapes["logits"] == (3, 32)


def test_prints_every_op_with_its_shape() -> None:
    text = str(tiny_graph())
    assert "layers.0.attention:" in text
    assert "a [1, 24] = attention q_turned k_turned v cache=0" in text
    assert len(text.splitlines()) == 1 + 6 + sum(1 for _ in tiny_graph().ops())


@pytest.mark.parametrize(
    ("subgraph", "op", "message"),
    [
        (0, Norm("x", "nothing", "norm_1", 1e-5), "reads 'nothing', which no earlier op makes"),
        (1, Linear("v", "h", "nowhere"), "reads tensor 'nowhere'"),
        (1, Linear("q", "h", "q"), "makes 'q', which an earlier op made"),
        (1, Linear("v", "h", "down"), "x is 24 wide, tensor down takes 40"),
        (1, Linear("v", "h", "norm_1"), "need a matrix"),
        (1, Linear("v", "h", "v", bias="norm_1"), "bias norm_1 is 24 long, need 12"),
        (3, Add("y", "x", "q"), "tensors that no op reads"),
        (4, Add("z", "y", "gate"), r"inputs are \[1, 24\] and \[1, 40\]"),
        (4, Norm("z", "gate", "norm_2", 1e-5), "width 40 is no multiple of 24"),
        (5, Norm("logits", "t", "norm_2", 1e-5), r"the last op makes \[1, 24\], need logits"),
    ],
)
def test_ill_formed_graphs_are_refused(subgraph: int, op: Op, message: str) -> None:
    graph = tiny_graph()
    if "no op reads" in message:
        graph = replace(graph, tensors=(*graph.tensors, Tensor("extra", (3,), "vector")))
        op = graph.subgraphs[subgraph].ops[-1]
    with pytest.raises(BadGraph, match=message):
        with_op(graph, subgraph, op).validate()


def test_attention_must_fit_its_cache() -> None:
    graph = tiny_graph()
    attention = graph.subgraphs[2].ops[-1]
    assert isinstance(attention, graphs.Attention)
    with pytest.raises(BadGraph, match="cache 1 of 1"):
        with_op(graph, 2, replace(attention, cache=1)).validate()
    with pytest.raises(BadGraph, match="the cache takes"):
        with_op(graph, 2, replace(attention, key="q_turned")).validate()
    with pytest.raises(BadGraph, match="a window of 0"):
        with_op(graph, 2, replace(attention, window=0)).validate()
    second = replace(attention, out="b")
    twice = replace(graph.subgraphs[2], ops=(*graph.subgraphs[2].ops, second))
    with pytest.raises(BadGraph, match="cache 0 is another attention's"):
        replace(graph, subgraphs=(*graph.subgraphs[:2], twice, *graph.subgraphs[3:])).validate()


def test_rows_without_logits_and_logits_without_rows() -> None:
    assert tiny_graph().resized(4, 0).validate()
    with pytest.raises(BadGraph, match="rows 2 with logit_rows 3"):
        tiny_graph().resized(2, 3).validate()


def test_empty_and_duplicate() -> None:
    graph = tiny_graph()
    with pytest.raises(BadGraph, match="no ops"):
        replace(graph, subgraphs=(Subgraph("head", None, ()),)).shapes()
    with pytest.raises(BadGraph, match="no ops at its end"):
        replace(graph, subgraphs=(*graph.subgraphs, Subgraph("head", None, ()))).validate()
    with pytest.raises(BadGraph, match="a context of 0"):
        replace(graph, context=0).validate()
    with pytest.raises(BadGraph, match="same name"):
        replace(graph, tensors=graph.tensors * 2).shapes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d["subgraphs"][1]["ops"][0].update(op="teleport"),
        lambda d: d["subgraphs"][1]["ops"][0].update(surprise=1),
        lambda d: d["subgraphs"][1]["ops"][0].pop("weight"),
        lambda d: d["tensors"][0].update(role="boss"),
        lambda d: d["subgraphs"][0].update(kind="cellar"),
        lambda d: d["subgraphs"][4]["ops"][3].update(function="sigmoid"),
        lambda d: d["subgraphs"][0]["ops"][0].update(scale="1"),
        lambda d: d["subgraphs"][1]["ops"][0].update(eps=None),
        lambda d: d["subgraphs"][1]["ops"][0].update(eps=float("nan")),
        lambda d: d["subgraphs"][1]["ops"][0].update(eps=True),
        lambda d: d["subgraphs"][1]["ops"][0].update(eps=10**400),
        lambda d: d["subgraphs"][1]["ops"][0].update(x=["x"]),
        lambda d: d["subgraphs"][2]["ops"][-1].update(cache="0"),
        lambda d: d["subgraphs"][2]["ops"][-1].update(window=4.5),
        lambda d: d["subgraphs"][2]["ops"][-1].update(softcap=[]),
        lambda d: d["subgraphs"][1].update(layer="0"),
        lambda d: d["caches"][0].update(head_dim=6.0),
        lambda d: d["tensors"][0].update(shape=[32, 24.0]),
        lambda d: d["tensors"][0].update(shape="ab"),
        lambda d: d.update(context="64"),
        lambda d: d.update(tensors=["x"]),
        lambda d: d.pop("caches"),
        lambda d: d.update(tensors=3),
    ],
)
def test_damaged_json_is_refused(damage: object) -> None:
    data = json.loads(json.dumps(graphs.to_json(tiny_graph())))
    assert callable(damage)
    damage(data)
    with pytest.raises(BadGraph):
        graphs.from_json(data, 1, 1)


def test_a_field_of_the_wrong_type_is_named() -> None:
    data = graphs.to_json(tiny_graph())
    data["subgraphs"][1]["ops"][0]["eps"] = "small"
    with pytest.raises(BadGraph, match="op norm 'h': eps is 'small', need float"):
        graphs.from_json(data, 1, 1)
