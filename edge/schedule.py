"""Runs jobs on several processors at once, in order or out of order, for real or simulated.

One board knows what is done and what is ready, and picks; `run` asks it from one thread a
processor, `simulate` from a loop over the jobs' expected times. A processor does one job at a time.

In order, each processor takes its jobs as they stand in the list. Out of order there are two rules:

- `GREEDY` (llm.npu, section 3.4): the ready job with the largest C, which for a job of the CPU is
  the NPU seconds that it makes ready, and for one of the NPU minus the CPU seconds.
- staggered: the CPU goes by C as well; but the NPU, and the CPU among equals, take the job of the
  chunk that is furthest behind, where chunk i may be i times `lag` layers behind chunk 0. The
  greedy rule finishes chunks one by one, so that the last one, whose attention is the longest, runs
  alone at the end; staggered, every layer's work of all chunks is spread over the same time.

By either, chunks may be held back: one starts only when the one before it has done its first
attention, though a processor waits meanwhile. Else two chunks run in step, and the NPU waits in
every layer for the second one's attention.

`best_rule` simulates the greedy rule, some lags, and both held back, and takes the shortest. For
Qwen1.5-1.8B's shape at 1024 tokens on SM8650 (modelled) the NPU waits 11 % of the time by the
greedy rule, under 1 % by the best one; at 512 tokens, two chunks, 12 % and under 1 %.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Literal

from edge.errors import LutraError
from edge.jobs import NPU, Job, check_jobs, lower_bound_s, processors_of

Action = Callable[[], None]

# Lags worth a try, in layers divided by chunks, and in layers.
_SPREADS = (1.0, 2.0, 1.5, 0.5, 3.0)
_LAGS = (0.25, 0.6, 0.3, 0.35, 0.2, 0.5, 0.4, 0.45, 0.55, 0.65, 0.7, 0.8, 1.5, 20.0)

# The lag of chunks that are held back.
_HELD_LAG = 0.5

# A schedule this near to the lower bound is good enough to look no further.
_NEAR = 1.002

# Jobs simulated in the search for the best rule, for at least two rules: a second of work.
_MOST_JOBS = 50_000


@dataclass(frozen=True)
class Rule:
    """How the next job is chosen; `lag`, in layers, is for the staggered rule alone.

    `held` is whether a chunk waits for the first attention of the one before it.
    """

    name: Literal["in_order", "greedy", "staggered"]
    lag: float = 0.0
    held: bool = False

    def __str__(self) -> str:
        words = f"{self.name} by {self.lag:g} layers" if self.name == "staggered" else self.name
        return f"{words}, held back" if self.held else words


IN_ORDER = Rule("in_order")
GREEDY = Rule("greedy")


@dataclass(frozen=True)
class Span:
    """When a job ran, in seconds from the start; `place` is where it stands in the list of jobs."""

    place: int
    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Timeline:
    """What ran when; spans are in the order in which jobs started."""

    jobs: tuple[Job, ...]
    spans: tuple[Span, ...]

    @property
    def makespan_s(self) -> float:
        """Seconds from the start to the end of the last job."""
        return max((span.end_s for span in self.spans), default=0.0)

    def on(self, processor: str) -> tuple[Span, ...]:
        """What ran on a processor, in its order."""
        return tuple(span for span in self.spans if self.jobs[span.place].processor == processor)

    def busy_s(self, processor: str) -> float:
        """Seconds in which a processor worked."""
        return sum(span.seconds for span in self.on(processor))

    def bubble_share(self, processor: str = NPU) -> float:
        """Share of the makespan in which a processor waited."""
        makespan = self.makespan_s
        return 1 - self.busy_s(processor) / makespan if makespan else 0.0


class Board:
    """Which jobs are done and which are ready; picks what a processor does next.

    Not safe for threads by itself: `run` holds a lock around it.
    """

    def __init__(self, jobs: Sequence[Job], rule: Rule) -> None:
        check_jobs(jobs)
        self.jobs = tuple(jobs)
        self.rule = rule
        self.left = len(self.jobs)
        held = _held(self.jobs) if rule.held else {}
        waits = [{*job.after, *held.get(place, ())} for place, job in enumerate(self.jobs)]
        self._waits_for = [len(others) for others in waits]
        self._followers: list[list[int]] = [[] for _ in self.jobs]
        self._queues: dict[str, list[int]] = {name: [] for name in processors_of(jobs)}
        for place, job in enumerate(self.jobs):
            for other in waits[place]:
                self._followers[other].append(place)
            if rule == IN_ORDER or not waits[place]:
                self._queues[job.processor].append(place)
        for queue in self._queues.values():
            queue.reverse()  # in order, the next one is popped from the end
        self._lateness = _lateness(self.jobs, rule.lag) if rule.name == "staggered" else None

    def take(self, processor: str) -> int | None:
        """The place of the job that `processor` does next; None where none is ready for it."""
        queue = self._queues[processor]
        if not queue:
            return None
        if self.rule == IN_ORDER:
            return queue.pop() if self._waits_for[queue[-1]] == 0 else None
        best = max(queue, key=self._urgency)
        queue.remove(best)
        return best

    def finish(self, place: int) -> None:
        """Count a job as done, which may make others ready."""
        self.left -= 1
        for follower in self._followers[place]:
            self._waits_for[follower] -= 1
            if self._waits_for[follower] == 0 and self.rule != IN_ORDER:
                self._queues[self.jobs[follower].processor].append(follower)

    def _urgency(self, place: int) -> tuple[float, float, int]:
        """What jobs are compared by; the first in the list among equals."""
        if self._lateness is None:
            return self._gain_s(place), 0.0, -place
        gain = self._gain_s(place) if self.jobs[place].processor != NPU else 0.0
        return gain, self._lateness[place], -place

    def _gain_s(self, place: int) -> float:
        """C of a job: how much it is worth to the NPU that this one runs first."""
        feeds = self.jobs[place].processor != NPU
        freed = [self.jobs[f] for f in self._followers[place] if self._waits_for[f] == 1]
        seconds = sum(job.seconds for job in freed if (job.processor == NPU) == feeds)
        return seconds if feeds else -seconds


def _lateness(jobs: Sequence[Job], lag: float) -> list[float]:
    """How far each job's chunk would be behind before it, in layers."""
    done = dict.fromkeys((job.chunk for job in jobs), 0.0)
    before = []
    for job in jobs:
        before.append(done[job.chunk])
        done[job.chunk] += job.seconds
    layers = _layers(jobs)
    return [
        -(seconds / max(done[job.chunk], 1e-30) * layers + lag * job.chunk)
        for job, seconds in zip(jobs, before, strict=True)
    ]


def _held(jobs: Sequence[Job]) -> dict[int, tuple[int]]:
    """What the first job of a chunk waits for besides: the first attention of the chunk before."""
    across = _across(jobs)
    firsts: dict[int, int] = {}
    attentions: dict[int, int] = {}
    for place, job in enumerate(jobs):
        firsts.setdefault(job.chunk, place)
        if job.stage in across:
            attentions.setdefault(job.chunk, place)
    before = ((place, attentions.get(chunk - 1, place)) for chunk, place in firsts.items())
    return {place: (attention,) for place, attention in before if attention < place}


def _layers(jobs: Sequence[Job]) -> int:
    """How many layers there are: each has one attention."""
    return max(len(_across(jobs)), 1)


def _across(jobs: Sequence[Job]) -> set[str]:
    """The stages that wait for other chunks: attention."""
    return {j.stage for j in jobs if any(jobs[other].chunk != j.chunk for other in j.after)}


def best_rule(jobs: Sequence[Job], advance: Callable[[int], None] = lambda _: None) -> Rule:
    """The out-of-order rule with the shortest simulation. Raises BadGraph.

    One processor has nothing to gain and gets IN_ORDER. The rule depends on the expected times
    alone, so it may be kept for a number of chunks. `advance` is called with the share of the work
    done since the last call, in percent.
    """
    good_s = _NEAR * lower_bound_s(jobs)
    if len(processors_of(jobs)) < 2:
        return IN_ORDER
    rules = candidate_rules(len({job.chunk for job in jobs}))
    rules = rules[: max(_MOST_JOBS // max(len(jobs), 1), 2)]
    best, best_s = GREEDY, math.inf
    for done, rule in enumerate(rules, 1):
        makespan_s = simulate(jobs, rule).makespan_s
        advance(100 * done // len(rules) - 100 * (done - 1) // len(rules))
        if makespan_s < best_s:
            best, best_s = rule, makespan_s
        if best_s <= good_s:
            break
    return best


def candidate_rules(chunks: int) -> list[Rule]:
    """Out-of-order rules worth a try for a number of chunks."""
    if chunks < 2:
        return [GREEDY]
    lags = dict.fromkeys((*(spread / chunks for spread in _SPREADS), *_LAGS))
    staggered = [Rule("staggered", lag) for lag in lags]
    held = [Rule("greedy", held=True), Rule("staggered", _HELD_LAG, held=True)]
    return [*staggered[:2], *held, *staggered[2:], GREEDY]


def simulate(jobs: Sequence[Job], rule: Rule) -> Timeline:
    """The timeline if every job takes the time expected of it. Deterministic. Raises BadGraph."""
    board = Board(jobs, rule)
    processors = processors_of(jobs)
    running: list[tuple[float, int]] = []  # heap of (end, place)
    idle = set(processors)
    spans: list[Span] = []
    now = 0.0
    while board.left:
        for processor in processors:
            if processor in idle and (place := board.take(processor)) is not None:
                idle.remove(processor)
                end = now + board.jobs[place].seconds
                heapq.heappush(running, (end, place))
                spans.append(Span(place, now, end))
        now = running[0][0]
        while running and running[0][0] == now:
            _, done = heapq.heappop(running)
            board.finish(done)
            idle.add(board.jobs[done].processor)
    return Timeline(board.jobs, tuple(spans))


def run(
    jobs: Sequence[Job],
    actions: Sequence[Action],
    rule: Rule,
    *,
    cancel: threading.Event | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timeline:
    """Call each job's action on its processor's thread; returns the times measured.

    The first action that raises stops the run: no further job starts, those running end, and the
    exception is raised here with the job named. Setting `cancel` stops it as well, with
    CancelledError; so does Ctrl-C. Raises BadGraph for jobs that cannot be scheduled.
    """
    assert len(actions) == len(jobs), f"{len(actions)} actions for {len(jobs)} jobs"
    return _Run(Board(jobs, rule), actions, cancel or threading.Event(), clock).run()


class _Run:
    """The threads of one `run`, and what they share."""

    def __init__(
        self,
        board: Board,
        actions: Sequence[Action],
        cancel: threading.Event,
        clock: Callable[[], float],
    ) -> None:
        self.board = board
        self.actions = actions
        self.cancel = cancel
        self.clock = clock
        self.changed = threading.Condition()
        self.stopped = False
        self.failure: tuple[Job, BaseException] | None = None
        self.spans: list[Span | None] = []  # in the order of starts; None while running
        self.start = 0.0

    def run(self) -> Timeline:
        workers = [
            threading.Thread(target=self.work, args=(processor,), name=f"lutra-{processor}")
            for processor in processors_of(self.board.jobs)
        ]
        self.start = self.clock()
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        finally:
            self.stop()  # Ctrl-C, or no more threads: what runs ends, nothing else starts
            for worker in workers:
                if worker.ident is not None:
                    worker.join()
        if self.failure is not None:
            raise _named(*self.failure)
        if self.board.left:
            raise CancelledError(f"cancelled with {self.board.left} jobs left")
        return Timeline(self.board.jobs, tuple(span for span in self.spans if span is not None))

    def work(self, processor: str) -> None:
        """What a processor's thread does until nothing is left for it."""
        while (taken := self.next(processor)) is not None:
            place, row = taken
            start = self.clock()
            try:
                self.actions[place]()
            except BaseException as error:
                self.fail(place, error)
                return
            self.finish(place, row, Span(place, start - self.start, self.clock() - self.start))

    def next(self, processor: str) -> tuple[int, int] | None:
        """Wait for a job: its place and its row of `spans`. None when there is no more to do."""
        with self.changed:
            while not self.stopped and self.board.left:
                if self.cancel.is_set():
                    self.stop()
                    return None
                if (place := self.board.take(processor)) is not None:
                    self.spans.append(None)
                    return place, len(self.spans) - 1
                self.changed.wait()  # woken by a job's end, of which one is always running
            return None

    def finish(self, place: int, row: int, span: Span) -> None:
        with self.changed:
            self.spans[row] = span
            self.board.finish(place)
            self.changed.notify_all()

    def fail(self, place: int, error: BaseException) -> None:
        with self.changed:
            if self.failure is None:
                self.failure = self.board.jobs[place], error
            self.stop()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


def _named(job: Job, error: BaseException) -> BaseException:
    """The same error with its job named: in the message of ours, in a note of others'."""
    if isinstance(error, LutraError):
        named = type(error)(f"{job.name}: {error.what}", error.cure)
        named.__cause__ = error
        return named
    error.add_note(f"in {job.name} on the {job.processor}")
    return error
