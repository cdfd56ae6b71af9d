"""The CPU backend. See `edge.backend.Backend`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cpu.codegen import tables
from cpu.kernels.families import interface
from cpu.library import Library
from cpu.native import INTERFACE, Native, compile_library, compile_native, refused_tiles
from cpu.program import CpuProgram
from cpu.single import SingleCalls
from cpu.threads import default_threads
from edge.backend import Artifact
from edge.bundle import Bundle
from edge.errors import MissingDependency, WrongSchema
from edge.formats import Format
from edge.graph import Graph
from edge.target import FEATURES, Machine, Target, this_machine

_INSTALL = 'pip install "lutra[convert]"'


class CpuBackend:
    """Runs what was compiled into a bundle, or compiles at load, with a cache on disk."""

    def targets(self, machine: Machine, artifacts: Sequence[Artifact] = ()) -> list[Target]:
        """The machine's own target and those below it; without a compiler, what is compiled."""
        if not _has_compiler():
            ahead = [a.target for a in artifacts if not _mismatch(machine, a.target)]
            return sorted(ahead, key=lambda target: -len(target.features))
        if machine.arch not in FEATURES:
            return []
        best = machine.target()
        return [target for target in (best, *_lesser(best)) if not _mismatch(machine, target)]

    def leaves_out(
        self, asked: Target | None, machine: Machine, artifacts: Sequence[Artifact] = ()
    ) -> str:
        """See `edge.backend.Backend`. Code for Android counts on Linux of the same processor."""
        if machine.arch not in FEATURES:
            return "" if asked else f"no code is made for {machine.arch}"
        wanted = asked or machine.target()
        if machine.mismatch(replace(wanted, features=())):
            return ""
        if lacking := [name for name in wanted.features if name not in machine.features]:
            return f"this machine lacks {', '.join(lacking)}"
        if reason := _refusal(wanted):
            return reason
        ahead = [a.target for a in artifacts if not _mismatch(machine, a.target)]
        made = wanted in ahead if asked else wanted.features in [a.features for a in ahead]
        if made or _has_compiler():
            return ""
        return f"nothing is compiled for {wanted}, and making code needs llvmlite ({_INSTALL})"

    def refuses(self, target: Target, graph: Graph) -> str:
        del graph
        return _mismatch(this_machine(), target)

    def compile(self, formats: Iterable[Format], target: Target, folder: Path) -> list[Artifact]:
        """One library of kernels. It does not depend on the model, only on its formats."""
        name = f"cpu/{str(target).removeprefix('cpu:')}/kernels.so"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        tools = compile_library(formats, tables.isa_for(target), folder / name)
        return [Artifact(name, target, tools)]

    def load(self, bundle: Bundle, target: Target, threads: int | None = None) -> CpuProgram:
        count = default_threads() if threads is None else threads
        return CpuProgram(bundle, target, _native(bundle, target), count)

    def kernels(self, bundle: Bundle, target: Target, threads: int | None = None) -> SingleCalls:
        """See `edge.backend.HasKernels`."""
        count = default_threads() if threads is None else threads
        return SingleCalls(target, _native(bundle, target), count)


def _native(bundle: Bundle, target: Target) -> Native:
    """The kernels that the bundle was compiled with for this target, else made now."""
    isa = tables.isa_for(target)
    matrix_unit, lookup_bits = isa.tiles is not None, isa.lookup_bits
    forms = {str(record.form): record.form for record in bundle.manifest.tensors.values()}.values()
    ahead = next((a for a in bundle.manifest.artifacts if a.target == target), None)
    wanted = interface(forms, matrix_unit=matrix_unit, lookup_bits=lookup_bits)
    if ahead is not None and ahead.tools.get(INTERFACE) == wanted:
        library = Library(bundle.checked(ahead.path))
        return Native([library], matrix_unit=matrix_unit, lookup_bits=lookup_bits)
    if _has_compiler():
        return compile_native(forms, isa)
    if ahead is not None:
        raise WrongSchema(
            f"{bundle.folder / ahead.path} has another version's kernels: "
            f"interface {ahead.tools.get(INTERFACE, 'none')}, need {wanted}",
            f"convert again with --targets {target}; with llvmlite ({_INSTALL}), code is made here",
        )
    raise MissingDependency(
        f"{bundle.folder} is not compiled for {target}, and compiling it now needs llvmlite",
        f"{_INSTALL}, or convert with --targets {target}",
    )


def _mismatch(machine: Machine, target: Target) -> str:
    """Why code for a target cannot run on a machine, which is the one at hand; empty if it can."""
    if target.unit != "cpu":
        return f"{target} is no processor"
    return machine.mismatch(target) or _refusal(target)


def _refusal(target: Target) -> str:
    """Why no code can be made for a target, or the system will not let it run."""
    if reason := tables.refuses(target):
        return reason
    return refused_tiles() if tables.isa_for(target).tiles is not None else ""


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
