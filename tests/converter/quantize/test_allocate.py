from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.quantize.allocate import Choice, allocate, parse_size
from edge.errors import UsageError
from edge.formats import Format

FORMS = [Format.parse(f"w{bits}g64") for bits in (2, 3, 4, 8)]


def offer(sizes: list[int], costs: list[float]) -> list[Choice]:
    return [Choice(f, n, c) for f, n, c in zip(FORMS, sizes, costs, strict=False)]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 50), st.floats(0, 10)), min_size=1, max_size=4),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 250),
)
def test_what_is_chosen_fits_and_cannot_be_bettered_by_one_step(
    table: list[list[tuple[int, float]]], budget: int
) -> None:
    choices = {
        str(i): offer([n for n, _ in row], [c for _, c in row]) for i, row in enumerate(table)
    }
    least = sum(min(c.byte_count for c in offered) for offered in choices.values())
    if least > budget:
        with pytest.raises(UsageError, match=str(least)):
            allocate(choices, budget)
        return
    taken = allocate(choices, budget)
    left = budget - sum(choice.byte_count for choice in taken.values())
    assert left >= 0
    for name, offered in choices.items():
        now = taken[name]
        for choice in offered:
            fits = choice.byte_count - now.byte_count <= left
            assert not (fits and choice.cost < now.cost)


def test_near_the_best_of_all_where_gains_fall() -> None:
    """Each bit more takes three quarters off the cost, as rounding does."""
    choices = {
        str(i): offer([20 + i, 30 + i, 40 + i, 80 + i], [s, s / 4, s / 16, s / 4096])
        for i, s in enumerate((1.0, 5.0, 0.2, 0.05, 9.0))
    }
    for budget in (120, 160, 200, 260, 400):
        best = min(
            sum(c.cost for c in combination)
            for combination in itertools.product(*choices.values())
            if sum(c.byte_count for c in combination) <= budget
        )
        assert sum(c.cost for c in allocate(choices, budget).values()) < 1.35 * best + 1e-9


@pytest.mark.parametrize(
    ("text", "expected"), [("3.2bpw", 400), ("1MB", 10**6), ("1.5MiB", 3 << 19)]
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text, 1000) == expected


@pytest.mark.parametrize("text", ["3", "bpw", "-3bpw", "3 GB", "3.2.1bpw"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="size"):
        parse_size(text, 1000)
