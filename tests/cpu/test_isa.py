"""The instruction set tables: which one a target gets, and what each says about itself."""

from __future__ import annotations

import numpy as np
import pytest

from cpu.codegen.tables import TABLES, isa_for, refuses
from edge.errors import UnknownTarget
from edge.target import FEATURES, Target
from tests.cpu.calls import check, run
from tests.cpu.harness import (
    ARM,
    X86,
    dot_case,
    expand_case,
    isa_of,
    loaded,
    runnable,
    widening_case,
)

BITS = (2, 3, 4)


def test_every_feature_has_a_table() -> None:
    assert {arch: list(tables) for arch, tables in TABLES.items()} == {
        arch: list(features) for arch, features in FEATURES.items()
    }


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("cpu:x86_64,avx2", "x86-avx2"),
        ("cpu:x86_64,avx512", "x86-avx512"),
        ("cpu:x86_64,vnni", "x86-vnni"),
        ("cpu:x86_64,amx", "x86-amx"),
        ("cpu:aarch64", "arm-neon"),
        ("cpu:aarch64-android,dotprod", "arm-dotprod"),
        ("cpu:aarch64-android,i8mm", "arm-i8mm"),
    ],
)
def test_a_target_gets_the_best_table_of_its_features(target: str, name: str) -> None:
    assert isa_of(target).name == name


@pytest.mark.parametrize(
    ("target", "reason"),
    [("cpu:x86_64", "names no feature, need at least avx2"), ("ref", "no"), ("npu:ort", "no")],
)
def test_other_targets_are_refused_with_a_reason(target: str, reason: str) -> None:
    assert reason in refuses(Target.parse(target))
    with pytest.raises(UnknownTarget, match=target):
        isa_for(Target.parse(target))


@pytest.mark.parametrize("target", [*X86, *ARM])
@pytest.mark.parametrize("bits", [*BITS, 8])
@pytest.mark.parametrize("rows", ["few", "many"])
def test_layouts_hold_every_row_once_and_divide_a_tile(target: str, bits: int, rows: str) -> None:
    isa = isa_of(target)
    layout = (isa.many if rows == "many" else isa.few).layout(bits)
    lanes_of_a_row = 2 if layout.alternating else 1
    held = [row for rows in layout.rows for row in rows]
    assert sorted(held) == sorted(list(range(layout.row_count)) * lanes_of_a_row)
    assert 64 % layout.row_count == 0
    assert len(layout.rows) == len(layout.factors) == len(set(layout.slots))
    assert len(layout.halves) in (0, len(layout.slots))


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("rows", ["few", "many"])
def test_planes_are_expanded_as_the_layout_says(target: str, bits: int, rows: str) -> None:
    isa = isa_of(target)
    case, kernels = expand_case(isa, bits, np.random.default_rng(bits), many=rows == "many")
    check(case, run(loaded(isa, kernels), case))


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize("whole", [False, True])
def test_dot_products_are_exact_to_the_last_extreme(target: str, whole: bool) -> None:
    isa = isa_of(target)
    case, kernels = dot_case(isa, np.random.default_rng(3), whole=whole)
    check(case, run(loaded(isa, kernels), case))


WIDENING = [target for target in (*X86, *ARM) if isa_of(target).widening]


@pytest.mark.parametrize("target", WIDENING)
@pytest.mark.parametrize("bits", [1, *BITS])
@pytest.mark.parametrize("rows", ["few", "many"])
def test_as_many_products_fit_int16_as_is_said(target: str, bits: int, rows: str) -> None:
    """One more step would not, and bytes do not."""
    isa = isa_of(target)
    layout, widening = (isa.many if rows == "many" else isa.few).layout(bits), isa.widening
    assert widening is not None
    steps, a_step = widening.steps(layout, bits), widening.pair * layout.products_a_step()

    def held(count: int) -> bool:
        most = count * a_step * layout.largest_code(bits)
        return most * -128 >= -(2**15) and most * 127 < 2**15

    assert steps >= 1
    assert held(steps)
    assert not held(steps + 1)
    assert widening.steps((isa.many if rows == "many" else isa.few).layout(8), 8) == 0


@pytest.mark.parametrize("target", [target for target in WIDENING if target in runnable()])
@pytest.mark.parametrize("bits", [1, *BITS])
@pytest.mark.parametrize("rows", ["few", "many"])
def test_the_largest_products_are_widened_exactly(target: str, bits: int, rows: str) -> None:
    isa = isa_of(target)
    case, kernels = widening_case(isa, bits, many=rows == "many")
    check(case, run(loaded(isa, kernels), case))
