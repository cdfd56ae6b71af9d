"""Attention over every format of the cache against its twin, and what the formats cost."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from cpu.kernels.attention import append_kernel, attention_kernel
from edge.kvcache import CacheFormat
from tests.cpu.attention_cases import SHAPES, Shape, attention_case
from tests.cpu.calls import Call, Case, check, run
from tests.cpu.harness import isa_of, loaded, runnable


@pytest.mark.parametrize("form", get_args(CacheFormat))
@pytest.mark.parametrize("target", runnable())
def test_every_shape_is_as_its_twin(target: str, form: CacheFormat) -> None:
    functions = loaded(isa_of(target), [attention_kernel(form)])
    for shape in SHAPES:
        case, _ = attention_case(form, shape)
        check(case, run(functions, case))
        check(case, run(functions, case, walled=("keys", "values")))


@pytest.mark.parametrize("form", get_args(CacheFormat))
def test_keys_and_values_are_appended_alone(form: CacheFormat) -> None:
    kernel = append_kernel(form)
    functions = loaded(isa_of(runnable()[0]), [kernel])
    for shape in SHAPES:
        whole, (both,) = attention_case(form, shape)
        slots = dict(zip(both.slots, whole.calls[0].slots, strict=True))
        calls = [Call(kernel.name, tuple(slots[name] for name in kernel.slots))]
        case = Case(whole.name, whole.buffers, calls, shape.threads, whole.expected)
        check(case, run(functions, case))


@pytest.mark.parametrize("form", get_args(CacheFormat))
def test_decoding_token_by_token_fills_the_cache_as_a_prompt_does(form: CacheFormat) -> None:
    """512 steps, each on the cache that the one before left."""
    functions = loaded(isa_of(runnable()[0]), [attention_kernel(form)])
    whole, _ = attention_case(form, Shape(2, 1, 24, 0, 512))
    at_once = run(functions, whole)
    step, _ = attention_case(form, Shape(2, 1, 24, 0, 512))
    kernel = attention_kernel(form)
    slots = dict(zip(kernel.slots, step.calls[0].slots, strict=True))
    held = dict(step.buffers)
    for position in range(512):
        names = ("query", "key", "value")
        row = {name: step.buffers[name][:, position : position + 1] for name in names}
        moved = {"rows": 1, "position": position}
        call = Call(kernel.name, tuple((slots | moved).values()))
        case = Case("step", held | row, [call])
        out = run(functions, case)
        held |= {name: out[name].copy() for name in ("keys", "values")}
        np.testing.assert_allclose(out["out"][0], at_once["out"][position], rtol=0, atol=2e-4)
    for name in ("keys", "values"):
        assert np.array_equal(held[name], at_once[name], equal_nan=True)
