"""The backend of Hexagon's vector unit. See `edge.backend.Backend`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

from edge.backend import Artifact
from edge.bundle import Bundle
from edge.errors import NpuUnavailable, UnknownTarget
from edge.formats import Format
from edge.graph import Graph
from edge.target import Machine, Target
from npu.hvx import emulator, fastrpc
from npu.hvx.isa import table_for
from npu.hvx.program import HvxProgram, emulated, on_phone

EMULATED = Target.parse("npu:hvx-v67")

# Where a bundle's skel libraries are: in one folder, as a phone's FastRPC looks through folders.
SKELS = "npu/hvx"


class HvxBackend:
    """Runs decode steps on a phone's NPU, or in emulation."""

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
        if target == EMULATED:
            return _missing()
        try:
            fastrpc.load()
        except NpuUnavailable as error:
            return f"{target} is a phone's: {error.what} (here {EMULATED} is emulated)"
        return ""

    def compile(self, formats: Iterable[Format], target: Target, folder: Path) -> list[Artifact]:
        """One skel library. It does not depend on the model, only on its formats."""
        from npu.hvx import build, skel

        if target == EMULATED:
            raise UnknownTarget(
                f"target {target}: it is emulated, and compiled when it runs", "leave it out"
            )
        (folder / SKELS).mkdir(parents=True, exist_ok=True)
        path = skel.library(table_for(target).version, formats, folder / SKELS)
        return [Artifact(f"{SKELS}/{path.name}", target, build.tools())]

    def load(self, bundle: Bundle, target: Target, threads: int | None = None) -> HvxProgram:
        """See `edge.backend.Backend`. Raises NpuUnavailable, AlteredBundle or CallRefused."""
        if target == EMULATED:
            return emulated(bundle, target, threads)
        made = [a.path for a in bundle.manifest.artifacts if a.target == target]
        if not made:
            raise NpuUnavailable(
                f"{bundle.folder} is not compiled for {target}", f"convert with --targets {target}"
            )
        return on_phone(bundle, target, bundle.checked(made[0]).parent, threads)


def _missing() -> str:
    """What emulation lacks here, with what brings it; empty where nothing."""
    packages = [name for name in ("llvmlite", "ziglang") if importlib.util.find_spec(name) is None]
    if packages:
        return f'Hexagon code needs {" and ".join(packages)}: pip install "lutra[ahead]"'
    if reason := emulator.missing():
        return f"emulating Hexagon: {reason}: {emulator.CURE}"
    return ""


BACKEND = HvxBackend()
