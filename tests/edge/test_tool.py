"""Modules that are run by themselves: how they end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge.errors import UsageError
from edge.tool import finish


def test_a_module_ends_with_its_code_or_with_an_errors_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse() -> int:
        raise UsageError("no folder", "name one")

    def forbidden() -> int:
        raise PermissionError(13, "Permission denied", "/proc/x")

    def stopped() -> int:
        raise KeyboardInterrupt

    for main, code, message in (
        (lambda: 0, 0, ""),
        (lambda: 5, 5, ""),
        (refuse, 2, "tool: no folder\n  to do: name one\n"),
        (stopped, 130, "tool: interrupted\n"),
        (forbidden, 1, "tool: [Errno 13] Permission denied: '/proc/x'\n"),
    ):
        with pytest.raises(SystemExit) as stop:
            finish("tool", main)
        assert stop.value.code == code
        assert capsys.readouterr().err == message


def test_a_module_that_nobody_reads_any_more_ends_quietly() -> None:
    script = "from edge.tool import finish; finish('tool', lambda: print('x' * 10 ** 6) or 0)"
    command = [sys.executable, "-c", script]
    ran = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert ran.stdout is not None
    assert ran.stderr is not None
    ran.stdout.close()
    with ran.stderr:
        assert ran.stderr.read() == b""
    assert ran.wait(60) == 0
