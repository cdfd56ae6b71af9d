from __future__ import annotations

from pathlib import Path

import pytest

from apps.bench import ceilings, measure, peer
from edge.target import Machine

QUICK = ("--target", "ref", "--threads", 1, "--prompt", 9, "--generate", 3)
ALL = Machine("x86_64", "linux", frozenset({"avx2", "avx512", "vnni", "amx"}))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rests, buffers and loops as short as can be."""
    monkeypatch.setattr(measure, "REST_S", 0)
    monkeypatch.setattr(ceilings, "BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "_RATE_S", 1e-5)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that needs no llama.cpp, on a machine that has all that it was built for."""
    monkeypatch.setattr(peer, "SIDE", "tests.apps.bench.fake_side")
    monkeypatch.setattr(peer, "this_machine", lambda: ALL)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
