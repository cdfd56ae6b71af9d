from __future__ import annotations

import pytest

from converter.models import build_model
from converter.plan import Formats, make_plan
from edge.errors import UnknownFormat
from tests.checkpoints import TINY


def plan_formats(
    weights: str, head: str | None = None, embedding: str | None = None, tied: bool = False
) -> dict[str, str]:
    graph = build_model(TINY | {"tie_word_embeddings": tied}).graph
    plan = make_plan(graph, Formats.parse(weights, head, embedding))
    return {p.tensor.name: str(p.form) for p in plan.tensors}


def test_roles_get_their_formats() -> None:
    formats = plan_formats("w2g64", head="w8gc", embedding="f16")
    assert formats["layers.0.q"] == "w2g64"
    assert formats["head"] == "w8gc"
    assert formats["embed"] == "f16"
    assert formats["layers.1.attention_norm"] == "f32"


@pytest.mark.parametrize("empty", [{"head": ""}, {"embedding": ""}])
def test_an_empty_format_is_none(empty: dict[str, str]) -> None:
    with pytest.raises(UnknownFormat, match="weight format ''"):
        Formats.parse("w4g64", **empty)


def test_a_tied_embedding_is_the_heads() -> None:
    assert plan_formats("w2g64", head="w8gc", embedding="f16", tied=True)["embed"] == "w8gc"


@pytest.mark.parametrize(
    ("weights", "head"),
    [
        ("w4g64a", "w4g64a"),
        ("w8gc", "w8gc"),
        ("f32", "f32"),
        ("w3g32", "w4g32"),
        ("w2g128a", "w4g128a"),
        ("ternary", "w4g64"),
        ("w2gc", "w4g64"),
    ],
)
def test_the_head_has_four_bits_at_least(weights: str, head: str) -> None:
    assert plan_formats(weights)["head"] == head
    assert plan_formats(weights)["embed"] == head


def test_sizes_add_up() -> None:
    plan = make_plan(build_model(TINY).graph, Formats.parse("w4g64"))
    q = next(p for p in plan.tensors if p.tensor.name == "layers.0.q")
    # 32 rows take a tile of 64: 4 steps x 4 planes x 64 bytes, and 64 scales of 2 bytes
    assert q.byte_count == 4 * 4 * 64 + 64 * 2
    assert plan.byte_count == sum(p.byte_count for p in plan.tensors)
    assert plan.bits_per_weight == 8 * plan.byte_count / plan.parameter_count
    assert plan.weight_count - plan.parameter_count == 4  # the rope frequencies


def test_the_table_has_a_line_for_alike_tensors_and_a_sum() -> None:
    rows = list(make_plan(build_model(TINY).graph, Formats.parse("w2g64")).rows())
    gate = next(row for row in rows if row[0] == "layers.*.gate (x2)")
    assert gate[1:3] == ("172x32", "w2g64")
    assert gate[-1] == "50 % of the group's largest"
    assert rows[-1][0] == "all"


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(UnknownFormat, match="q4_0"):
        Formats.parse("w4g64", head="q4_0")
