"""Packets of the scheduled loops, as assembled; and what the schedules themselves promise."""

from __future__ import annotations

import pytest

from edge.formats import Format
from npu.hvx import packets

# Packets for 1,000 weights: no more than docs/hexagon.md says.
MOST = {
    "w1g64": 3.39,
    "w1gc": 3.03,
    "w2g32": 6.48,
    "w2g64": 5.99,
    "w2g64a": 5.93,
    "w2g128": 5.74,
    "ternary": 5.5,
    "w3g32": 11.05,
    "w3g64": 10.81,
    "w3g128a": 10.81,
    "w3gca": 10.87,
    "w4g32": 11.85,
    "w4g64": 11.72,
    "w4g64a": 11.72,
    "w4g128": 11.11,
}


@pytest.mark.parametrize("text", MOST)
@pytest.mark.parametrize("version", [67, 73, 79])
def test_loops_take_few_packets(text: str, version: int) -> None:
    pytest.importorskip("ziglang", reason="loops are assembled by it")
    made = packets.count(Format.parse(text), version)
    assert made.packets_per_1000 <= MOST[text]
    assert made.lookups == 32 * (made.form.bits + made.form.bits % 2)  # 3 bits: 4 planes
    assert made.packets <= made.instructions <= 4 * made.packets
