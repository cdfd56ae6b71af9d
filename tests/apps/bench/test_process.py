"""Sides in processes of their own: what they answer, how they end."""

from __future__ import annotations

import signal

import pytest

from apps.bench import process
from apps.bench.process import Child
from apps.bench.worker import peak_rss_bytes
from edge.errors import LutraError, MissingDependency, PromptTooLong


def test_a_childs_errors_are_raised_here(faked: None) -> None:
    with Child("tests.apps.bench.fake_side") as child:
        with pytest.raises(PromptTooLong, match="what was found; what to do"):
            child.ask("refuse")
        with pytest.raises(LutraError, match="ZeroDivisionError: by zero"):
            child.ask("fail")
        assert child.ask("versions")["llama_cpp"] == "2"
        with pytest.raises(LutraError, match=r"code 7 while asked to die\n[\s\S]*the last words"):
            child.ask("die")


def test_a_child_that_does_not_end_is_ended(faked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_STOP_S", 0.01)
    child = Child("tests.apps.bench.fake_side")
    child.ask("linger")
    child.close()
    assert child._process.returncode == -signal.SIGKILL
    child.close()


def test_what_ended_a_child_is_named(faked: None) -> None:
    with (
        Child("tests.apps.bench.fake_side") as child,
        pytest.raises(
            LutraError, match=r"fake_side in .* ended with SIGILL [\s\S]*build it for this"
        ),
    ):
        child.ask("die", by=signal.SIGILL)


def test_a_python_that_is_not_there() -> None:
    with pytest.raises(MissingDependency, match="nowhere/python"):
        Child("tests.apps.bench.fake_side", "nowhere/python")


def test_peak_memory_is_this_processs_own(faked: None) -> None:
    ballast = bytearray(200 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    assert peak_rss_bytes() > 200 << 20
    with Child("tests.apps.bench.fake_side") as child:
        assert 1 << 20 < child.ask("memory")["peak_rss_bytes"] < 60 << 20
