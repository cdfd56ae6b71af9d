"""Teams of threads: one step at a time, and Ctrl-C at any moment leaves no thread behind."""

from __future__ import annotations

import _thread
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import edge
from converter.convert import convert
from cpu.program import CpuProgram
from cpu.threads import Team, default_threads
from edge.errors import UsageError
from edge.generate import prefill
from edge.target import this_machine
from tests.checkpoints import make_checkpoint

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize("count", [0, -1, CORES + 1, 10_000])
def test_impossible_counts_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match=f"{count} threads, this process may use"):
        Team(count)


@pytest.mark.parametrize("count", range(1, CORES + 1))
def test_every_thread_does_its_part_of_every_step(count: int) -> None:
    team, parts = Team(count), []
    for _ in range(200):
        team.run(lambda index, threads: parts.append((index, threads)))
    assert sorted(parts) == sorted([(index, count) for index in range(count)] * 200)


def test_an_error_in_a_thread_reaches_the_caller_and_the_team_goes_on() -> None:
    team = Team(CORES)

    def fails(index: int, count: int) -> None:
        if index == count - 1:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        team.run(fails)
    team.run(lambda index, count: None)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_is_heard_when_all_threads_have_done() -> None:
    """Threads that meet at a barrier would wait for ever if one were stopped before it."""
    team = Team(CORES)
    barrier, done = threading.Barrier(CORES, timeout=60), []

    def work(index: int, count: int) -> None:
        if index == 0:
            _thread.interrupt_main()
        barrier.wait()
        done.append(index)

    for turn in range(1, 20):
        with pytest.raises(KeyboardInterrupt):
            team.run(work)
        assert len(done) == turn * CORES


def test_a_process_that_was_forked_off_gets_threads_of_its_own() -> None:
    """In a new process, so that no other thread of the tests is lost in the fork."""
    script = """
import os
from cpu.threads import Team

team = Team(1)
with team.alone():
    child = os.fork()
    if child:
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with team.alone():
    team.run(lambda index, count: None)
os._exit(7)
"""
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, timeout=60, capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (7, b"")


def test_threads_end_with_their_team() -> None:
    before = set(threading.enumerate())
    team = Team(CORES)
    team.run(lambda index, count: None)
    threads = set(threading.enumerate()) - before
    assert len(threads) == CORES
    del team
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.fixture
def one_big(tmp_path: Path) -> Path:
    """The processors of this process, as if but the first were little cores."""
    for index in os.sched_getaffinity(0):
        (tmp_path / f"cpu{index}").mkdir()
        capacity = 1024 if index == min(os.sched_getaffinity(0)) else 400
        (tmp_path / f"cpu{index}" / "cpu_capacity").write_text(str(capacity))
    return tmp_path


def test_the_fast_processors_are_counted(one_big: Path) -> None:
    assert 1 <= default_threads() <= CORES
    assert default_threads(one_big) == 1


def test_threads_stay_on_the_fast_processors(one_big: Path) -> None:
    """As long as there are enough of them; the rest of the process goes where it likes."""
    everywhere = os.sched_getaffinity(0)
    found: list[set[int]] = []
    for count in (1, CORES):
        Team(count, one_big).run(lambda index, threads: found.append(os.sched_getaffinity(0)))
    assert found == [{min(everywhere)}] + [everywhere] * CORES
    assert os.sched_getaffinity(0) == everywhere


@pytest.mark.skipif(
    not this_machine().features & {"avx2", "neon"}, reason="no code generator for this machine"
)
def test_a_second_step_while_one_runs_is_refused_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(make_checkpoint(tmp_path / "source"), tmp_path / "m.lutra", weights="w4g32")
    model = edge.load(tmp_path / "m.lutra")
    program = model.program
    assert isinstance(program, CpuProgram)
    expected = model.logits([1, 2, 3])
    step, refused = program._native.step, []

    def meanwhile(*arguments: int) -> None:
        with pytest.raises(UsageError, match="a step is running already"):
            prefill(program, model.session().cache, [7, 8, 9, 10, 11])
        refused.append(True)
        step(*arguments)

    monkeypatch.setattr(program._native, "step", meanwhile)
    assert np.array_equal(model.logits([1, 2, 3]), expected)
    assert len(refused) == program.team.count
    monkeypatch.undo()
    assert np.array_equal(model.logits([1, 2, 3]), expected)
