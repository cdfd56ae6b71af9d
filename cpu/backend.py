"""The CPU backend. See `edge.backend.Backend`."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

from cpu.program import CpuProgram
from edge.backend import Artifact
from edge.bundle import Bundle
from edge.errors import MissingDependency, UnknownTarget
from edge.graph import Graph
from edge.target import FEATURES, Machine, Target, this_machine


class CpuBackend:
    """Compiles graphs at load, with a cache on disk."""

    def targets(self, machine: Machine) -> list[Target]:
        """The machine's own target and those below it, where there is a compiler."""
        if importlib.util.find_spec("llvmlite") is None:
            return []
        from cpu.codegen import tables

        try:
            best = machine.target()
        except UnknownTarget:
            return []
        return [target for target in (best, *_lesser(best)) if not tables.refuses(target)]

    def refuses(self, target: Target, graph: Graph) -> str:
        del graph
        if mismatch := this_machine().mismatch(target):
            return mismatch
        from cpu.codegen import tables

        return tables.refuses(target)

    def compile(self, bundle: Bundle, target: Target, folder: Path) -> list[Artifact]:
        del bundle, target, folder
        return []

    def load(self, bundle: Bundle, target: Target, threads: int | None = None) -> CpuProgram:
        if importlib.util.find_spec("llvmlite") is None:
            raise MissingDependency(f"{target} needs llvmlite", 'pip install "lutra[convert]"')
        from cpu.codegen.tables import isa_for
        from cpu.native import compile_native
        from cpu.threads import default_threads

        formats = {str(r.form): r.form for r in bundle.manifest.tensors.values()}
        native = compile_native(formats.values(), isa_for(target))
        return CpuProgram(bundle, target, native, default_threads() if threads is None else threads)


def _lesser(target: Target) -> list[Target]:
    """The target with ever fewer features, the last in the table's order left out first."""
    named = [name for name in FEATURES[target.arch] if name in target.features]
    return [
        replace(target, features=tuple(sorted(named[:n]))) for n in range(len(named) - 1, 0, -1)
    ]


BACKEND = CpuBackend()
