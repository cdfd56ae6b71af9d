"""The child's end of a benchmark: requests as JSON lines on standard input, answers on output.

It runs in the peer's Python too, which need not have Lutra's packages: standard library alone.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

Answer = dict[str, Any]


class Refusal(Exception):
    """An error to hand to the parent: the name of a class of edge.errors, what, and a cure."""

    def __init__(self, kind: str, what: str, cure: str) -> None:
        super().__init__(kind, what, cure)
        self.kind, self.what, self.cure = kind, what, cure


class Side(Protocol):
    """One of the systems compared: what a parent may ask of it, by name."""

    @property
    def requests(self) -> Mapping[str, Callable[..., Answer]]: ...


def main(module: str) -> None:
    """Serve the `SIDE` of a module until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    side: Side = importlib.import_module(module).SIDE
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_answer(side, request)), file=answers, flush=True)


def peak_rss_bytes() -> int:
    """The most memory this process has held, its mapped files included (VmHWM).

    getrusage would report the parent's where that was larger when it forked.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _answer(side: Side, request: dict[str, Any]) -> Answer:
    try:
        return {"answer": side.requests[request["name"]](**request["arguments"])}
    except Refusal as error:
        return {"error": {"kind": error.kind, "what": error.what, "cure": error.cure}}
    except Exception as error:
        import traceback  # its memory would be measured as the side's

        traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        return {"error": {"kind": "LutraError", "what": what, "cure": ""}}
