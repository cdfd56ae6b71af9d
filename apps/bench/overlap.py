"""Measure what out-of-order execution brings, on two threads of this machine.

    python -m apps.bench.overlap PRESET [--layers N] [--rows N] [--chunks N] [--rounds N] [--json]

A model of random weights in a published shape is prefilled in turns: its jobs on two threads, one
in the NPU's place (8-bit graphs on ONNX Runtime) and one in the CPU's (norms and attention), in
order, by the greedy rule and by the best one; and all jobs on one thread, and with projections on
two. All give the same values, which is checked. Every figure is measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from apps.bench.overlap_model import OverlapModel, Sizes
from apps.gantt import draw_bars
from apps.output import print_json, print_table
from apps.progress import Bar
from converter.models import build_model
from converter.presets import PRESETS
from edge.errors import LutraError
from edge.jobs import CPU, NPU, Job, Part, chunk_jobs, lower_bound_s
from edge.schedule import GREEDY, IN_ORDER, Rule, Timeline, best_rule, run
from edge.trace import Run, timeline_slices, write_trace
from npu.soc.work import ModelWork, graph_work

# Set for the child that measures: NumPy's own threads would take the other thread's core.
_ONE_THREAD = "OPENBLAS_NUM_THREADS"

_PROFILES = 3


@dataclass(frozen=True)
class Way:
    """One way to do the jobs: on which model (threads a projection), which jobs, by which rule."""

    model: OverlapModel
    jobs: tuple[Job, ...]
    rule: Rule

    def run(self) -> Timeline:
        self.model.reset()
        actions = [_action(self.model, job) for job in self.jobs]
        return run(self.jobs, actions, self.rule)


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args = _parse(argv)
    one_blas_thread("apps.bench.overlap", argv)
    try:
        taken, bound_s = measure(args)
    except LutraError as error:
        print(f"overlap: {error.what}\n  to do: {error.cure}", file=sys.stderr)
        return error.exit_code
    values = {name: _figures(timelines) for name, timelines in taken.items()}
    print_table(_rows(values))
    print(f"lower bound from the jobs' times: {bound_s:.3f} s (measured)")
    last = [(name, taken[name][-1]) for name in ("in order", "best")]
    if args.plot:
        print("\n".join(draw_bars(last, "measured")))
    if args.trace is not None:
        runs = [Run(name, "measured", timeline_slices(timeline)) for name, timeline in last]
        write_trace(args.trace, runs)
    if args.json:
        print_json({"figures": "measured", "lower_bound_s": bound_s, "ways": values})
    return 0


def one_blas_thread(module: str, argv: list[str] | None) -> None:
    """Start `module` again with NumPy on one thread, unless it is; does not return then."""
    if os.environ.get(_ONE_THREAD) != "1":
        environment = os.environ | {_ONE_THREAD: "1"}
        words = [sys.executable, "-m", module, *(argv or sys.argv[1:])]
        os.execve(sys.executable, words, environment)  # noqa: S606


def measure(args: argparse.Namespace) -> tuple[dict[str, list[Timeline]], float]:
    """Timelines by way, and the lower bound that the jobs' own times give."""
    graph = build_model(PRESETS[args.preset]).graph
    work = graph_work(args.preset, graph)
    work = ModelWork(work.name, work.layers[: args.layers], work.head)
    sizes = Sizes(args.rows, args.chunks, graph.caches[0].head_dim)
    model = OverlapModel(work, sizes)
    jobs = _profiled(model, args.chunks)
    best = best_rule(jobs)
    alone = tuple(replace(job, part=Part(CPU)) for job in jobs)
    ways = {
        "in order": Way(model, jobs, IN_ORDER),
        "greedy": Way(model, jobs, GREEDY),
        "best": Way(model, jobs, best),
        "one thread": Way(model, alone, IN_ORDER),
        "projections on two": Way(OverlapModel(work, sizes, threads=2), alone, IN_ORDER),
    }
    bar = Bar(quiet=args.quiet)
    bar.note(f"best rule: {best}")
    bar.start("rounds", args.rounds * len(ways), "runs")
    taken: dict[str, list[Timeline]] = {name: [] for name in ways}
    expected = None
    for _ in range(args.rounds):
        for name, way in ways.items():
            taken[name].append(way.run())
            expected = way.model.results if expected is None else expected
            assert np.array_equal(way.model.results, expected), f"{name} computes something else"
            bar.advance(1)
    bar.finish()
    return taken, lower_bound_s(_timed(jobs, taken["best"]))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m apps.bench.overlap",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", choices=PRESETS, help="published shape")
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="of them (4)")
    parser.add_argument("--rows", type=int, default=256, metavar="N", help="of a chunk (256)")
    parser.add_argument("--chunks", type=int, default=4, metavar="N", help="of the prompt (4)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of all ways (5)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="last runs, for ui.perfetto.dev")
    parser.add_argument("--plot", action="store_true", help="draw the last runs")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser.parse_args(argv)


def _action(model: OverlapModel, job: Job) -> Callable[[], None]:
    return lambda: model.act(job.chunk, job.stage)


def _profiled(model: OverlapModel, chunks: int) -> tuple[Job, ...]:
    """The jobs with the times that each took while both threads worked, after a first run."""
    jobs = chunk_jobs(model.stages(), chunks, lambda *_: 0.0)
    warm = Way(model, jobs, GREEDY)
    return _timed(jobs, [warm.run() for _ in range(_PROFILES + 1)][1:])


def _timed(jobs: tuple[Job, ...], timelines: list[Timeline]) -> tuple[Job, ...]:
    """The jobs with the medians of their times."""
    times: list[list[float]] = [[] for _ in jobs]
    for timeline in timelines:
        for span in timeline.spans:
            times[span.place].append(span.seconds)
    return tuple(
        replace(job, seconds=statistics.median(taken))
        for job, taken in zip(jobs, times, strict=True)
    )


def _figures(timelines: list[Timeline]) -> dict[str, float]:
    """Medians over the rounds."""

    def middle(figure: Callable[[Timeline], float]) -> float:
        return statistics.median(figure(timeline) for timeline in timelines)

    return {
        "seconds": middle(lambda timeline: timeline.makespan_s),
        "npu_wait_share": middle(lambda timeline: timeline.bubble_share()),
        "npu_s": middle(lambda timeline: timeline.busy_s(NPU)),
        "cpu_s": middle(lambda timeline: timeline.busy_s(CPU)),
    }


def _rows(values: dict[str, dict[str, float]]) -> Iterator[tuple[str, ...]]:
    base = values["in order"]["seconds"]
    yield "measured", "seconds", "to in order", "NPU thread waits", "its work", "CPU's work"
    for name, figures in values.items():
        share = f"{figures['npu_wait_share']:.1%}" if figures["npu_s"] else ""
        work = (f"{figures[key]:.3f} s" if figures[key] else "" for key in ("npu_s", "cpu_s"))
        seconds = figures["seconds"]
        yield name, f"{seconds:.3f}", f"{seconds / base - 1:+.0%}", share, *work


if __name__ == "__main__":
    sys.exit(main())
