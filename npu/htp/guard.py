"""Runs `npu.htp.child` and turns what becomes of it into errors.

Qualcomm's compiler and emulator can end the process that they are in. So graphs are compiled, and
binaries tried for the first time, in a child.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from edge import errors
from edge.errors import LutraError, NpuCrashed

# The folder that rooms are imported from.
_ROOT = Path(__file__).resolve().parents[2]

Done = Callable[[str], None]


def run_child(job: dict[str, Any], done: Done) -> None:
    """Do a job in a child; `done(name)` is called after each of its items.

    Raises the error that the child reports, or NpuCrashed naming the item that it died on.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        errors_path = Path(folder) / "stderr"
        with errors_path.open("wb") as complaints:
            begun, code = _follow(path, done, complaints)
        if code:
            raise _crashed(begun, code, errors_path)


def _follow(path: Path, done: Done, complaints: IO[bytes]) -> tuple[str, int]:
    """Start the child and listen until it ends; returns the last item begun and the exit code."""
    python_path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    begun = ""
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-P", "-m", "npu.htp.child", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=complaints,
        env=os.environ | {"PYTHONPATH": python_path},
        text=True,
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                begun = _heard(line, begun, done)
        except BaseException:  # an error that it reports, or Ctrl-C
            child.kill()
            raise
    return begun, child.returncode


def _heard(line: str, begun: str, done: Done) -> str:
    """Act on one line of the child; what Qualcomm's libraries print is let go."""
    try:
        message = json.loads(line)
    except ValueError:
        return begun
    if "error" in message:
        error = message["error"]
        kind: type[LutraError] = getattr(errors, error["kind"])
        raise kind(error["what"], error["cure"])
    if "done" in message:
        done(message["done"])
    return str(message.get("begun", begun))


def _crashed(item: str, code: int, complaints: Path) -> NpuCrashed:
    last = complaints.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    said = f" ({last[0]})" if last else ""
    return NpuCrashed(
        f"{item or 'the NPU provider'}: the process it was in died with {how}{said}",
        "convert again; if it stays, report it with the versions that lutra doctor prints",
    )
