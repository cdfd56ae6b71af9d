"""Rotary frequencies: those of published shapes, both spellings, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from converter.models import build_model
from converter.models.builder import Model
from converter.models.config import Config
from converter.models.rope import default_context, read_rotation
from edge.errors import UnsupportedMath
from edge.graph import Rope
from tests.converter.models import published
from tests.golden.rotations import ROTATIONS
from tests.golden.store import PATH

PHI3 = published.PHI_3_MINI_128K.config

YARN = {"factor": 4.0, "original_max_position_embeddings": 16, "rope_type": "yarn"}


def config(**values: object) -> Config:
    return Config({"max_position_embeddings": 64, **values})


def same_math(first: Model, second: Model) -> bool:
    return first.graph == second.graph and all(
        np.array_equal(values, second.constants[name]) for name, values in first.constants.items()
    )


@pytest.mark.parametrize("name", ROTATIONS)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    case = ROTATIONS[name]
    with np.load(PATH) as stored:
        *frequencies, factor = stored[f"rotation.{name}"]
    model = build_model(case.config, case.context)
    # 3 units in the last place: powers differ by one or two between math libraries
    np.testing.assert_allclose(model.constants[case.tensor], frequencies, rtol=3 * 2**-23, atol=0)
    scales = [op.scale for op in model.graph.ops() if isinstance(op, Rope)]
    np.testing.assert_allclose(scales, factor, rtol=2**-23)


def test_longrope_is_made_for_one_length() -> None:
    short, long = build_model(PHI3), build_model(PHI3, 4097)
    assert short.graph.context == 4096
    factors = PHI3["rope_scaling"]
    ratio = short.constants["rope"] / long.constants["rope"]
    expected = np.divide(factors["long_factor"], factors["short_factor"])
    np.testing.assert_allclose(ratio, expected, rtol=1e-6)


def test_default_context_is_the_configs_own() -> None:
    assert default_context(config()) == 64
    assert default_context(config(rope_scaling=YARN)) == 64


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        ({"rope_theta": 500.0}, {"rope_parameters": {"rope_theta": 500.0}}),
        (
            {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
        ),
        (
            {"rope_scaling": YARN},
            {"rope_parameters": YARN | {"rope_theta": 10000.0}},
        ),
    ],
)
def test_both_spellings_say_the_same(older: dict[str, Any], newer: dict[str, Any]) -> None:
    first = read_rotation(config(**older), 16, 64)
    second = read_rotation(config(**newer), 16, 64)
    assert np.array_equal(first.frequencies, second.frequencies)
    assert first.scale == second.scale


def test_gemma3_rotations_in_both_spellings() -> None:
    older = published.GEMMA_3_1B.config | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    dropped = ("rope_local_base_freq", "rope_scaling", "rope_theta", "sliding_window_pattern")
    newer = {key: value for key, value in older.items() if key not in dropped} | {
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4
        + ["sliding_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"factor": 8.0, "rope_theta": 1000000, "rope_type": "linear"},
            "sliding_attention": {"rope_theta": 10000, "rope_type": "default"},
        },
    }
    assert same_math(build_model(older), build_model(newer))


def test_phi3_partial_heads_in_both_spellings() -> None:
    older = published.PHI_4_MINI.config
    newer = {key: value for key, value in older.items() if not key.startswith(("rope", "partial"))}
    newer["rope_parameters"] = older["rope_scaling"] | {
        "partial_rotary_factor": 0.75,
        "rope_theta": 10000.0,
        "rope_type": "longrope",
    }
    assert same_math(build_model(older), build_model(newer))


def test_first_phi3_checkpoints_call_longrope_su() -> None:
    older = PHI3 | {"rope_scaling": PHI3["rope_scaling"] | {"type": "su"}}
    assert same_math(build_model(PHI3), build_model(older))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.type"),
        ({"rope_scaling": {"rope_type": "proportional"}}, "rope_scaling.rope_type"),
        ({"rope_parameters": {"rope_type": "axial"}}, "rope_parameters.rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor"),
        ({"rope_scaling": YARN | {"mscale_some_dim": 2.0}}, "rope_scaling.mscale_some_dim"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "ramp": 1}}, "rope_scaling.ramp"),
        ({"rope_scaling": 2.0}, "rope_scaling"),
        ({"rope_theta": "10000"}, "rope_theta"),
        ({"rope_scaling": {"rope_theta": True}}, "rope_scaling.rope_theta"),
        ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "rope_scaling.partial_rotary_factor"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
            "rope_scaling.short_factor",
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8}},
            "rope_scaling.long_factor",
        ),
    ],
)
def test_what_is_not_implemented_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedMath) as caught:
        read_rotation(config(**values), 16, 64)
    assert f"config key {named} " in caught.value.what


def test_two_spellings_at_once_are_refused() -> None:
    values = published.QWEN2_5_0_5B.config | {
        "rope_parameters": {"rope_theta": 5.0},
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }
    with pytest.raises(UnsupportedMath, match="rope_parameters"):
        build_model(values)
