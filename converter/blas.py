"""How many threads BLAS takes: with small matrices they wait for each other more than they work."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

from edge.graph import Graph

# Parameters of the largest model that goes through BLAS on one thread.
SMALL = 32_000_000


@contextlib.contextmanager
def suited_to(graph: Graph) -> Iterator[None]:
    """One thread for a small model, where threadpoolctl is there to say so; else all there are.

    On two cores of which one has other work, a calibrated conversion of a model of 260,000
    parameters takes 3.5 s so and 33 s with two threads (measured).
    """
    if graph.parameter_count > SMALL or importlib.util.find_spec("threadpoolctl") is None:
        yield
        return
    import threadpoolctl

    with threadpoolctl.threadpool_limits(1, "blas"):
        yield
