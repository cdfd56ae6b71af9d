"""The CPU backend. See `edge.backend.Backend`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cpu.codegen import tables
from cpu.library import Library
from cpu.native import Native, compile_library, compile_native
from cpu.program import CpuProgram
from cpu.threads import default_threads
from edge.backend import Artifact
from edge.bundle import Bundle
from edge.errors import MissingDependency, UnknownTarget
from edge.formats import Format
from edge.graph import Graph
from edge.target import FEATURES, Machine, Target, this_machine


class CpuBackend:
    """Runs what was compiled into a bundle, or compiles at load, with a cache on disk."""

    def targets(self, machine: Machine, artifacts: Sequence[Artifact] = ()) -> list[Target]:
        """The machine's own target and those below it; without a compiler, what is compiled."""
        ahead = [a.target for a in artifacts if a.target.unit == "cpu"]
        if not _has_compiler():
            fitting = [target for target in ahead if not machine.mismatch(target)]
            return sorted(fitting, key=lambda target: -len(target.features))
        try:
            best = machine.target()
        except UnknownTarget:
            return []
        return [target for target in (best, *_lesser(best)) if not tables.refuses(target)]

    def refuses(self, target: Target, graph: Graph) -> str:
        del graph
        return this_machine().mismatch(target) or tables.refuses(target)

    def compile(self, formats: Iterable[Format], target: Target, folder: Path) -> list[Artifact]:
        """One library of kernels. It does not depend on the model, only on its formats."""
        name = f"cpu/{str(target).removeprefix('cpu:')}/kernels.so"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tools = compile_library(formats, tables.isa_for(target), folder / name)
        return [Artifact(name, target, tools)]

    def load(self, bundle: Bundle, target: Target, threads: int | None = None) -> CpuProgram:
        count = default_threads() if threads is None else threads
        return CpuProgram(bundle, target, _native(bundle, target), count)


def _native(bundle: Bundle, target: Target) -> Native:
    """The kernels that the bundle was compiled with for this target, else made now."""
    isa = tables.isa_for(target)
    for artifact in bundle.manifest.artifacts:
        if artifact.target == target:
            library = Library(bundle.folder / artifact.path)
            return Native([library], matrix_unit=isa.tiles is not None)
    if not _has_compiler():
        raise MissingDependency(
            f"{bundle.folder} is not compiled for {target}, and compiling it now needs llvmlite",
            f'pip install "lutra[convert]", or convert with --targets {target}',
        )
    formats = {str(record.form): record.form for record in bundle.manifest.tensors.values()}
    return compile_native(formats.values(), isa)


def _has_compiler() -> bool:
    try:
        return importlib.util.find_spec("llvmlite") is not None
    except ValueError:  # its entry among the loaded modules is empty
        return False


def _lesser(target: Target) -> list[Target]:
    """The target with ever fewer features, the last in the table's order left out first."""
    named = [name for name in FEATURES[target.arch] if name in target.features]
    return [
        replace(target, features=tuple(sorted(named[:n]))) for n in range(len(named) - 1, 0, -1)
    ]


BACKEND = CpuBackend()
