"""Runs jobs on several processors at once, in order or out of order, for real or simulated.

One board knows what is done and what is ready, and picks; `run` asks it from one thread a
processor, `simulate` from a loop over the jobs' expected times. A processor does one job at a time.

Out of order (llm.npu, section 3.4) the job to run next is the ready one with the largest
C = + NPU seconds that it makes ready, for a job of the CPU, or C = - CPU seconds that it makes
ready, for one of the NPU. So the CPU feeds the NPU first, and the NPU puts off what the CPU must
work on long. In order, each processor takes its jobs as they stand in the list.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Literal

from edge.errors import LutraError
from edge.jobs import NPU, Job, check_jobs, processors_of

Order = Literal["in_order", "out_of_order"]
Action = Callable[[], None]


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

    def __init__(self, jobs: Sequence[Job], order: Order) -> None:
        check_jobs(jobs)
        self.jobs = tuple(jobs)
        self.order = order
        self.left = len(self.jobs)
        self._waits_for = [len(set(job.after)) for job in self.jobs]
        self._followers: list[list[int]] = [[] for _ in self.jobs]
        self._queues: dict[str, list[int]] = {name: [] for name in processors_of(jobs)}
        for place, job in enumerate(self.jobs):
            for other in set(job.after):
                self._followers[other].append(place)
            if order == "in_order" or not job.after:
                self._queues[job.processor].append(place)
        for queue in self._queues.values():
            queue.reverse()  # in order, the next one is popped from the end

    def take(self, processor: str) -> int | None:
        """The place of the job that `processor` does next; None where none is ready for it."""
        queue = self._queues[processor]
        if not queue:
            return None
        if self.order == "in_order":
            return queue.pop() if self._waits_for[queue[-1]] == 0 else None
        best = max(queue, key=lambda place: (self._gain_s(place), -place))
        queue.remove(best)
        return best

    def finish(self, place: int) -> None:
        """Count a job as done, which may make others ready."""
        self.left -= 1
        for follower in self._followers[place]:
            self._waits_for[follower] -= 1
            if self._waits_for[follower] == 0 and self.order == "out_of_order":
                self._queues[self.jobs[follower].processor].append(follower)

    def _gain_s(self, place: int) -> float:
        """C of a job: how much it is worth to the NPU that this one runs first."""
        feeds = self.jobs[place].processor != NPU
        freed = [self.jobs[f] for f in self._followers[place] if self._waits_for[f] == 1]
        seconds = sum(job.seconds for job in freed if (job.processor == NPU) == feeds)
        return seconds if feeds else -seconds


def simulate(jobs: Sequence[Job], order: Order = "out_of_order") -> Timeline:
    """The timeline if every job takes the time expected of it. Deterministic. Raises BadGraph."""
    board = Board(jobs, order)
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
    order: Order = "out_of_order",
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
    return _Run(Board(jobs, order), actions, cancel or threading.Event(), clock).run()


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
