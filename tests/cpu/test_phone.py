"""What decode on a phone waits for."""

from __future__ import annotations

from cpu.phone import Phone


def test_cores_share_the_memory() -> None:
    phone = Phone(clock_ghz=2, core_gb_s=10, memory_gb_s=20)
    assert phone.cycles(100, 1) == phone.cycles(100, 2) == 20
    assert phone.cycles(100, 4) == 40


def test_the_slower_of_both_is_waited_for() -> None:
    phone = Phone(clock_ghz=2, core_gb_s=10, memory_gb_s=20)
    assert phone.waits_for(100, 30, 1) == "computing"
    assert phone.waits_for(100, 30, 4) == "memory"
