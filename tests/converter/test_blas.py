"""Threads of BLAS by the size of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter import blas
from converter.convert import prepare
from converter.plan import Formats
from tests.checkpoints import make_checkpoint

threadpoolctl = pytest.importorskip("threadpoolctl")


def threads() -> list[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]


def test_a_small_model_has_one_and_others_what_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(tmp_path / "source")
    graph = prepare(tmp_path / "source", Formats.parse("f32")).model.graph
    with threadpoolctl.threadpool_limits(2, "blas"):
        before = threads()
        with blas.suited_to(graph):
            assert set(threads()) <= {1}
        assert threads() == before
        monkeypatch.setattr(blas, "SMALL", graph.parameter_count - 1)
        with blas.suited_to(graph):
            assert threads() == before
