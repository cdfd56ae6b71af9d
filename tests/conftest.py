"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from edge.sampler import Sampler

# The same examples every time, and no limit that a busy machine would trip over.
settings.register_profile("lutra", derandomize=True, deadline=None)
settings.load_profile("lutra")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def no_draws_by_chance() -> Iterator[None]:
    """A test that draws tokens without a seed fails: its result would be another every time."""
    draws = Sampler.__dict__["_random"]
    seeded = draws.func

    def checked(sampler: Sampler) -> np.random.Generator:
        assert sampler.sampling.seed is not None, "give the sampling of this test a seed, or greedy"
        generator: np.random.Generator = seeded(sampler)
        return generator

    draws.func = checked
    yield
    draws.func = seeded


@pytest.fixture(scope="session")
def stories() -> Path:
    """The checkpoint of a small trained model, read in place."""
    data = Path(os.environ.get("LUTRA_TEST_DATA", ROOT.parent / "shared" / "models"))
    folder = data / "stories260k"
    if not (folder / "config.json").is_file():
        pytest.skip(f"no trained model at {folder}; set LUTRA_TEST_DATA to the folder that has it")
    return folder


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
