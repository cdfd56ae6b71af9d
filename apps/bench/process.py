"""The parent's end of a benchmark: a child process for each side, so that memory and threads are
its own, asked by JSON lines over pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import edge.errors
from edge.errors import LutraError, MissingDependency

_ROOT = Path(__file__).resolve().parents[2]

# The folder goes last, so that a Python with packages of its own keeps to them.
_START = "import sys; sys.path.append(sys.argv[1]); from apps.bench.worker import main; main({!r})"

_STOP_S = 10

# By what ended a child.
_CURES = {
    "SIGILL": "it uses an instruction that this machine lacks: build it for this machine",
    "SIGKILL": "often that is too little memory: close other programs, or use a smaller model",
}


class Child:
    """A side in a process of its own. Use as a context manager."""

    def __init__(
        self,
        module: str,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.module, self._python = module, python
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        command = [python, "-c", _START.format(module), str(_ROOT)]
        try:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._log.close()
            raise MissingDependency(
                f"cannot start {python} ({error.strerror})", "give the path of a Python"
            ) from error

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, name: str, **arguments: object) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises what the child refused it with."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(
                json.dumps({"name": name, "arguments": arguments}),
                file=self._process.stdin,
                flush=True,
            )
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._died(name)
        message = json.loads(line)
        if "error" in message:
            raise _error(**message["error"])
        answer: dict[str, Any] = message["answer"]
        return answer

    def close(self) -> None:
        """End the child: it ends when its input does, unless a library keeps it."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            try:
                self._process.communicate(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
        self._log.close()

    def _died(self, request: str) -> LutraError:
        code = self._process.wait()
        self._log.seek(0)
        last = "\n".join(self._log.read().splitlines()[-15:])
        what = (
            f"{self.module} in {self._python} ended with {_ending(code)} while asked to {request}"
        )
        return LutraError(f"{what}\n{last}".rstrip(), _CURES.get(_ending(code), ""))


def _ending(code: int) -> str:
    """A process's code, or the name of the signal that ended it."""
    return f"code {code}" if code >= 0 else signal.Signals(-code).name


def _error(kind: str, what: str, cure: str) -> LutraError:
    """The error of edge.errors that a child named."""
    found = getattr(edge.errors, kind, LutraError)
    assert issubclass(found, LutraError), kind
    made: LutraError = found(what, cure)
    return made
