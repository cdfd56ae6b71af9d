"""The backend of Hexagon's vector unit. See `edge.backend.Backend`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

from edge.backend import Artifact
from edge.bundle import Bundle
from edge.errors import UnknownTarget
from edge.formats import Format
from edge.graph import Graph
from edge.target import Machine, Target
from npu.hvx import emulator
from npu.hvx.program import HvxProgram

EMULATED = Target.parse("npu:hvx-v67")


class HvxBackend:
    """Runs decode steps in emulation."""

    def targets(self, machine: Machine, artifacts: Sequence[Artifact] = ()) -> list[Target]:
        del machine, artifacts
        return [] if _missing() else [EMULATED]

    def leaves_out(
        self, asked: Target | None, machine: Machine, artifacts: Sequence[Artifact] = ()
    ) -> str:
        del machine, artifacts
        return _missing() if asked is None else ""

    def refuses(self, target: Target, graph: Graph) -> str:
        del graph
        if target != EMULATED:
            return f"{target} is a phone's; here {EMULATED} is emulated"
        return _missing()

    def compile(self, formats: Iterable[Format], target: Target, folder: Path) -> list[Artifact]:
        del formats, folder
        raise UnknownTarget(f"target {target}: nothing to compile ahead", "leave it out")

    def load(self, bundle: Bundle, target: Target, threads: int | None = None) -> HvxProgram:
        return HvxProgram(bundle, target, threads)


def _missing() -> str:
    """What emulation lacks here, with what brings it; empty where nothing."""
    packages = [name for name in ("llvmlite", "ziglang") if importlib.util.find_spec(name) is None]
    if packages:
        return f'Hexagon code needs {" and ".join(packages)}: pip install "lutra[ahead]"'
    if reason := emulator.missing():
        return f"emulating Hexagon: {reason}: {emulator.CURE}"
    return ""


BACKEND = HvxBackend()
