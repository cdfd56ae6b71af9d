"""A team of threads that run one native step together and sleep between steps."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from edge.errors import UsageError

# Runs this thread's part of a step: (thread index, number of threads).
Work = Callable[[int, int], None]

_PROCESSORS = Path("/sys/devices/system/cpu")

# Processors of one kind: the clocks of equal cores differ by some per cent.
_SAME_KIND = 0.8


class Team:
    """`count` threads that do a step together; the caller sleeps meanwhile.

    They stay on the fastest processors that the process may use: all others would wait at every
    barrier for one on a little core. A process that was forked off has none of its parent's
    threads, and gets its own; they end with the team.
    """

    def __init__(self, count: int, processors: Path = _PROCESSORS) -> None:
        available = len(os.sched_getaffinity(0))
        if not 1 <= count <= available:
            raise UsageError(
                f"{count} threads, this process may use {available} processors",
                f"use 1 to {available}: threads wait for each other by spinning",
            )
        self.count = count
        self._places = fastest(count, processors)
        self._gather()

    def _gather(self) -> None:
        self._process = os.getpid()
        self._busy = threading.Lock()
        self._crew = _Crew(self.count, self._places)
        weakref.finalize(self, self._crew.leave)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the team, and all memory that its steps use. Raises UsageError where it is held."""
        if self._process != os.getpid():
            self._gather()
        if not self._busy.acquire(blocking=False):
            raise UsageError("a step is running already", "use one model for each caller")
        try:
            yield
        finally:
            self._busy.release()

    def run(self, work: Work) -> None:
        """Have every thread do its part of `work`; call it within `alone`.

        Ctrl-C is heard when all have done: a thread that were left at a barrier would spin for
        ever. That is why no part of a step is done by the caller, whom Ctrl-C may stop anywhere.
        """
        self._crew.run(work)


class _Crew:
    """The threads of a team, and what they share. They keep it alive, but not the team."""

    def __init__(self, count: int, places: set[int]) -> None:
        self._count = count
        self._places = places
        self._work: Work | None = None
        self._error: BaseException | None = None
        self._ended = False
        # Steps are numbered, so that waking a thread twice does no harm.
        self._step = 0
        self._done = [0] * count
        self._wake = [threading.Semaphore(0) for _ in range(count)]
        self._finished = threading.Semaphore(0)
        for index in range(count):
            threading.Thread(target=self._serve, args=(index,), daemon=True).start()

    def run(self, work: Work) -> None:
        self._work = work
        self._step += 1
        interrupt: KeyboardInterrupt | None = None
        while self._running():
            try:
                for wake in self._wake:
                    wake.release()
                while self._running():
                    self._finished.acquire()
            except KeyboardInterrupt as caught:
                interrupt = caught
        self._work, error, self._error = None, self._error, None
        if failure := error or interrupt:
            raise failure

    def leave(self) -> None:
        """Let the threads end."""
        self._ended = True
        for wake in self._wake:
            wake.release()

    def _running(self) -> bool:
        return any(done != self._step for done in self._done)

    def _serve(self, index: int) -> None:
        with contextlib.suppress(OSError):  # where the system took them away since
            os.sched_setaffinity(0, self._places)  # of this thread alone
        while not self._ended:
            self._wake[index].acquire()
            step, work = self._step, self._work
            if work is None or self._done[index] == step:
                continue
            try:
                work(index, self._count)
            except BaseException as error:
                self._error = error
            del work  # it keeps the model that the step is of
            self._done[index] = step
            self._finished.release()


def default_threads(processors: Path = _PROCESSORS) -> int:
    """The processors of the fastest kind that this process may use.

    Where the kernel tells their capacity or highest clock (ARM's big and little cores), those at
    under 80 % of the best one are left out.
    """
    return len(fastest(1, processors))


def fastest(count: int, processors: Path = _PROCESSORS) -> set[int]:
    """The `count` fastest processors that this process may use, with others of their kind."""
    speeds = {index: _speed(processors / f"cpu{index}") for index in os.sched_getaffinity(0)}
    least = sorted(speeds.values(), reverse=True)[count - 1]
    return {index for index, speed in speeds.items() if speed >= _SAME_KIND * least}


def _speed(folder: Path) -> int:
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        try:
            return int((folder / name).read_text())
        except (OSError, ValueError):
            continue
    return 0
