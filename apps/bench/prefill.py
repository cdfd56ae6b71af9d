"""Measure a bundle's prefill out of order, in order, and on the CPU alone.

    python -m apps.bench.prefill BUNDLE [--prefill TARGET] [--chunks N] [--rounds N] [--json]

The bundle's NPU program runs one prompt in turns: out of order, then the same jobs in order, with
one thread in the NPU's place (ONNX Runtime, for npu:ort) and one for the CPU's work (norms,
attention, outliers). Both give the same logits, which is checked. Beside them, the
bundle's own CPU program runs the prompt on one thread and on all, with the weights of decode. Every
figure is measured, a median over the rounds.

example:
  lutra convert ./model model.lutra --npu npu:ort --chunk 128
  python -m apps.bench.prefill model.lutra --chunks 4
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

import edge
from apps.bench.overlap import one_blas_thread
from apps.gantt import draw_bars
from apps.output import print_json, print_table
from apps.progress import Bar
from cpu.threads import default_threads
from edge.backend import prompt_backend_for
from edge.errors import LutraError, UsageError
from edge.generate import prefill
from edge.jobs import CPU, NPU
from edge.kvcache import KVCache
from edge.model import Model
from edge.schedule import Timeline
from edge.target import Target
from edge.trace import Run, timeline_slices, write_trace
from npu.htp.program import HtpProgram

OUT_OF_ORDER, IN_ORDER = "out of order", "in order"

# Prompts before the first round: expected times come from one, and the rule from the next.
_WARM_UPS = 2

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """One prompt: its seconds, and what ran when where an NPU program ran it."""

    seconds: float
    timeline: Timeline | None = None


class Bench:
    """One prompt, and the ways to run it."""

    def __init__(self, bundle: Path, target: Target, chunks: int) -> None:
        cores = default_threads()
        self.models = {
            threads: edge.load(bundle, prefill="cpu", decode="cpu", threads=threads)
            for threads in sorted({1, cores})
        }
        self.model = self.models[1]
        program = prompt_backend_for(target).load(self.model.bundle, target)
        if not isinstance(program, HtpProgram):
            raise UsageError(f"{bundle} has whole layers, and no schedule", "use --npu-form pieces")
        if program.emulated:
            raise UsageError(f"{program.place}: its times mean nothing", "use npu:ort, or a phone")
        self.program = program
        count, context = chunks * program.rows, self.model.context
        if not 2 <= chunks <= context // program.rows:
            raise UsageError(
                f"{chunks} chunks of {program.rows} tokens, the context is {context}",
                f"use 2 to {context // program.rows}, or convert with another --chunk or --context",
            )
        drawn = np.random.default_rng(0).integers(0, self.model.bundle.graph.vocabulary, count)
        self.tokens = drawn.astype(np.int32)
        self.expected: Logits | None = None

    def ways(self) -> dict[str, Callable[[], Sample]]:
        """What is measured, by name."""
        made: dict[str, Callable[[], Sample]] = {
            OUT_OF_ORDER: partial(self._npu, in_order=False),
            IN_ORDER: partial(self._npu, in_order=True),
        }
        for threads, model in self.models.items():
            made[_alone(threads)] = partial(self._cpu, model)
        return made

    def _npu(self, *, in_order: bool) -> Sample:
        self.program.in_order = in_order
        cache = self._cache(self.model)
        start = time.perf_counter()
        logits = self.program.run_prompt(self.tokens, cache, 1)
        seconds = time.perf_counter() - start
        self.expected = logits if self.expected is None else self.expected
        assert np.array_equal(logits, self.expected), "the order changes the logits"
        return Sample(seconds, self.program.timeline)

    def _cpu(self, model: Model) -> Sample:
        cache = self._cache(model)
        start = time.perf_counter()
        prefill(model.program, cache, self.tokens)
        return Sample(time.perf_counter() - start)

    def _cache(self, model: Model) -> KVCache:
        cache = model.session().cache
        cache.reserve(len(self.tokens))  # else pages are got within the time
        return cache


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    args = _parse(argv)
    one_blas_thread("apps.bench.prefill", argv)
    try:
        bench = Bench(args.bundle, Target.parse(args.prefill), args.chunks)
        taken = measure(bench, args.rounds, Bar(quiet=args.quiet))
    except LutraError as error:
        print(f"prefill: {error.what}\n  to do: {error.cure}", file=sys.stderr)
        return error.exit_code
    values = {name: figures(samples) for name, samples in taken.items()}
    prompt = f"{len(bench.tokens)} tokens, {args.chunks} chunks of {bench.program.rows}"
    print(f"{prompt}; NPU program on {bench.program.place}; CPU alone on {bench.model.place}")
    print_table(_rows(values, len(bench.tokens)))
    last = [(name, taken[name][-1].timeline) for name in (OUT_OF_ORDER, IN_ORDER)]
    drawn = [(name, timeline) for name, timeline in last if timeline is not None]
    if args.plot:
        print("\n".join(draw_bars(drawn, "measured")))
    if args.trace is not None:
        runs = [Run(name, "measured", timeline_slices(timeline)) for name, timeline in drawn]
        write_trace(args.trace, runs)
    if args.json:
        print_json({"figures": "measured", "tokens": len(bench.tokens), "ways": values})
    return 0


def measure(bench: Bench, rounds: int, bar: Bar) -> dict[str, list[Sample]]:
    """Samples by way, in turns, after runs that count for nothing."""
    ways = bench.ways()
    taken: dict[str, list[Sample]] = {name: [] for name in ways}
    bar.start("rounds", (rounds + _WARM_UPS) * len(ways), "prompts")
    for turn in range(rounds + _WARM_UPS):
        for name, way in ways.items():
            sample = way()
            if turn >= _WARM_UPS:
                taken[name].append(sample)
            bar.advance(1)
    bar.finish()
    return taken


def figures(samples: list[Sample]) -> dict[str, float]:
    """Medians over the rounds; the share and the work are of the NPU program's two threads."""
    timelines = [sample.timeline for sample in samples if sample.timeline is not None]
    values = {"seconds": median(sample.seconds for sample in samples)}
    if timelines:
        values["npu_wait_share"] = median(timeline.bubble_share() for timeline in timelines)
        values["npu_s"] = median(timeline.busy_s(NPU) for timeline in timelines)
        values["cpu_s"] = median(timeline.busy_s(CPU) for timeline in timelines)
    return values


def _alone(threads: int) -> str:
    return f"CPU alone, {threads} thread{'s' if threads > 1 else ''}"


def _rows(values: dict[str, dict[str, float]], tokens: int) -> Iterator[tuple[str, ...]]:
    base = values[IN_ORDER]["seconds"]
    yield (
        "measured",
        "seconds",
        "tok/s",
        "to in order",
        "NPU thread waits",
        "its work",
        "CPU's work",
    )
    for name, way in values.items():
        seconds, work = way["seconds"], ["", "", ""]
        if "npu_s" in way:
            share, npu_s, cpu_s = way["npu_wait_share"], way["npu_s"], way["cpu_s"]
            work = [f"{share:.1%}", f"{npu_s:.3f} s", f"{cpu_s:.3f} s"]
        yield name, f"{seconds:.3f}", f"{tokens / seconds:.0f}", f"{seconds / base - 1:+.0%}", *work


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m apps.bench.prefill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="converted with --npu")
    parser.add_argument("--prefill", default="npu:ort", metavar="TARGET", help="(npu:ort)")
    parser.add_argument("--chunks", type=int, default=4, metavar="N", help="of the prompt (4)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of all ways (5)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="last runs, for ui.perfetto.dev")
    parser.add_argument("--plot", action="store_true", help="draw the last runs")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
