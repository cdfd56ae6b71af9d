"""A team of threads that run one native step together and sleep between steps."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from edge.errors import UsageError

# Runs this thread's part of a step: (thread index, number of threads).
Work = Callable[[int, int], None]


class Team:
    """`count` threads, the caller's included. `run` returns when all have done their part.

    One step runs at a time; a second caller gets UsageError.
    """

    def __init__(self, count: int) -> None:
        available = len(os.sched_getaffinity(0))
        if not 1 <= count <= available:
            raise UsageError(
                f"{count} threads, this process may use {available} processors",
                f"use 1 to {available}: threads wait for each other by spinning",
            )
        self.count = count
        self._work: Work | None = None
        self._busy = threading.Lock()
        self._start = [threading.Semaphore(0) for _ in range(count - 1)]
        self._done = threading.Semaphore(0)
        for index in range(1, count):
            threading.Thread(target=self._serve, args=(index,), daemon=True).start()

    def run(self, work: Work) -> None:
        """Have every thread do its part of `work`."""
        if not self._busy.acquire(blocking=False):
            raise UsageError("a step is running already", "use one model for each caller")
        try:
            self._work = work
            for start in self._start:
                start.release()
            work(0, self.count)
            for _ in self._start:
                self._done.acquire()
        finally:
            self._work = None
            self._busy.release()

    def _serve(self, index: int) -> None:
        while True:
            self._start[index - 1].acquire()
            work = self._work
            if work is not None:
                work(index, self.count)
            self._done.release()


def default_threads(cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """The processors of the fastest kind that this process may use.

    Where the kernel tells their capacity or highest clock (ARM's big and little cores), those at
    under 80 % of the best one are left out.
    """
    allowed = sorted(os.sched_getaffinity(0))
    speeds = [_speed(cpus / f"cpu{index}") for index in allowed]
    best = max(speeds)
    return sum(speed >= 0.8 * best for speed in speeds) if best else len(allowed)


def _speed(folder: Path) -> int:
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        try:
            return int((folder / name).read_text())
        except (OSError, ValueError):
            continue
    return 0
