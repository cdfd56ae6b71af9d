"""Cycles of instructions on a core, as `llvm-mca` models them: everything in the nearest cache.

What it takes a loop to be is its instructions again and again, with every branch guessed right. The
models are LLVM's own, made from vendors' optimization guides; for some cores LLVM uses that of a
relative, which may be an older one with fewer units.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import LutraError, MissingDependency

# Two runs of so many turns; the difference leaves out what filling the core costs.
_TURNS = (100, 200)

# Instructions of AMX: LLVM's tables say a latency of 100 cycles of each, and four of them a cycle.
_TILES = re.compile("tile|tdp")


@dataclass(frozen=True)
class Tool:
    """An `llvm-mca` and its version."""

    path: str
    version: str

    def cycles(self, instructions: Sequence[str], triple: str, core: str, features: str) -> float:
        """Cycles of a turn. Raises LutraError where the tool does not know core or instruction."""
        if unknown := next((text for text in instructions if _TILES.match(text)), None):
            raise LutraError(f"{self.path}: has no times of {unknown.split()[0]}")
        first, last = (self._total(instructions, triple, core, features, n) for n in _TURNS)
        return (last - first) / (_TURNS[1] - _TURNS[0])

    def _total(
        self, instructions: Sequence[str], triple: str, core: str, features: str, turns: int
    ) -> int:
        options = [f"-mtriple={triple}", f"-mcpu={core}", f"-mattr={features}"]
        command = [self.path, *options, f"-iterations={turns}", "-json"]
        # where a branch goes makes no difference, but there must be a label
        text = "\n".join(["here:", *(re.sub(r"\.LBB\w+", "here", i) for i in instructions)])
        done = subprocess.run(  # noqa: S603
            command, input=text, capture_output=True, text=True, check=False
        )
        if done.returncode or "error:" in done.stderr:
            said = done.stderr.strip().splitlines()
            raise LutraError(f"{self.path}: cannot model {core}: {said[0] if said else 'no cause'}")
        regions = json.loads(done.stdout)["CodeRegions"]
        total: int = regions[0]["SummaryView"]["TotalCycles"]
        return total


def find_tool() -> Tool:
    """The newest llvm-mca on the path. Raises MissingDependency."""
    names = {
        file.name
        for folder in os.get_exec_path()
        if Path(folder).is_dir()
        for file in Path(folder).glob("llvm-mca*")
        if re.fullmatch(r"llvm-mca(-\d+)?", file.name)
    }
    tools = [Tool(path, _version(path)) for name in names if (path := shutil.which(name))]
    if not tools:
        raise MissingDependency(
            "modelling cycles needs llvm-mca, which is not on the path",
            "apt-get install llvm-19 (or llvm), or give --no-cycles",
        )
    return max(tools, key=lambda tool: [int(part) for part in tool.version.split(".")])


def _version(path: str) -> str:
    """As in "LLVM version 19.1.7"; 0 where it does not say."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    match = re.search(r"LLVM version (\d+(?:\.\d+)*)", done.stdout)
    return match[1] if match else "0"
