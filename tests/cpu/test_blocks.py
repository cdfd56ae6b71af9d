"""Which rows the vectors of sums hold, and what is mixed in accumulators."""

from __future__ import annotations

import pytest

from cpu.kernels.blocks import lanes_of
from edge.formats import INTEGER_BITS
from tests.cpu.harness import ARM, X86, isa_of


@pytest.mark.parametrize("target", [*X86, *ARM])
@pytest.mark.parametrize("bits", INTEGER_BITS)
@pytest.mark.parametrize("rows", ["few", "many"])
def test_sums_have_every_row_once_and_subtract_what_is_already_known(
    target: str, bits: int, rows: str
) -> None:
    isa = isa_of(target)
    layout = (isa.many if rows == "many" else isa.few).layout(bits)
    vectors = lanes_of(layout)
    assert sorted(row for lanes in vectors for row in lanes.rows) == list(range(layout.row_count))
    for place, lanes in enumerate(vectors):
        assert len(lanes.rows) == len(lanes.factors) == isa.lanes
        assert set(lanes.factors) == {layout.factors[slot] for slot in lanes.slots}
        first, *others = (layout.mixed_with(slot) for slot in lanes.slots)
        known = [before.slots for before in vectors[:place]]
        assert all(pair in known for pair in zip(first, *others, strict=True))
