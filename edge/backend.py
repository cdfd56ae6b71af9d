"""Backends: how a graph becomes something that runs, found by the target's name.

A backend lives in another room. `edge` knows its module's name and speaks to it through the two
protocols here; nothing in `edge` imports it before a target asks for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edge.errors import UnknownTarget
from edge.formats import Format
from edge.graph import Graph
from edge.kvcache import KVCache
from edge.target import Machine, Target, this_machine

if TYPE_CHECKING:
    from edge.bundle import Bundle
    from edge.schedule import Timeline

# Unit of a target (Target.unit) -> module with a `BACKEND`. Order is preference for "auto".
BACKENDS: dict[str, str] = {
    "cpu": "cpu.backend",
    "ref": "edge.reference",
    "npu:hvx": "npu.hvx.backend",
}

# The same for units that run prompts alone, beside a program that decodes.
PROMPT_BACKENDS: dict[str, str] = {"npu:htp": "npu.htp.backend", "npu:ort": "npu.htp.backend"}


class Program(Protocol):
    """A bundle's graph made ready on a target."""

    @property
    def target(self) -> Target: ...

    @property
    def chunks(self) -> tuple[int, ...]:
        """Row counts that one run takes, ascending; the engine pads to the next one."""
        ...

    def run(
        self, tokens: NDArray[np.int32], count: int, cache: KVCache, logit_rows: int
    ) -> NDArray[np.float32]:
        """Run `tokens` [chunk], of which the first `count` are valid, behind what `cache` holds.

        Makes room for them in the cache and advances it by `count`. Returns logits float32
        [logit_rows, vocabulary] of the last `logit_rows` valid tokens; every program takes 0, 1 and
        `count`. Raises PromptTooLong where the cache's context cannot hold them.
        """
        ...


@runtime_checkable
class PicksBest(Protocol):
    """A program that can keep the logits to itself, which saves greedy decoding a copy of them."""

    def best(self, tokens: NDArray[np.int32], count: int, cache: KVCache) -> tuple[int, float]:
        """Run as `Program.run` does, for the last valid token's likeliest next one and its logit.

        It is what `np.argmax` picks, the lowest id among equals; where a logit is NaN, so is the
        one returned.
        """
        ...


@dataclass(frozen=True)
class Artifact:
    """A compiled file inside a bundle: its path there, its target, and what made it."""

    path: str
    target: Target
    tools: dict[str, str]


class Backend(Protocol):
    """What makes programs for one unit."""

    def targets(self, machine: Machine, artifacts: Sequence[Artifact] = ()) -> list[Target]:
        """Targets that this machine could run, best first, with a bundle's compiled files."""
        ...

    def leaves_out(
        self, asked: Target | None, machine: Machine, artifacts: Sequence[Artifact] = ()
    ) -> str:
        """Why this machine, of the right kind, cannot run `asked`; empty where it can.

        None is all that the machine has. Whoever asks then takes the next target down.
        """
        ...

    def refuses(self, target: Target, graph: Graph) -> str:
        """Why this backend cannot lower `graph` to `target`; empty where it can."""
        ...

    def compile(self, formats: Iterable[Format], target: Target, folder: Path) -> list[Artifact]:
        """Compile ahead, for tensors of these formats, into a bundle's folder.

        Raises UnknownTarget where there is no code for the target, or nothing to compile.
        """
        ...

    def load(self, bundle: Bundle, target: Target, threads: int | None = None) -> Program:
        """Make the bundle's graph ready to run on `target`; `threads` None is as many as suit."""
        ...


class Kernels(Protocol):
    """A backend's kernels, which other rooms call one at a time."""

    @property
    def target(self) -> Target: ...

    @property
    def threads(self) -> int: ...

    def run(self, name: str, arguments: Sequence[int]) -> None:
        """Run a kernel on all threads, with numbers and addresses in the order of its slots."""
        ...


@runtime_checkable
class HasKernels(Protocol):
    """A backend whose kernels can be had."""

    def kernels(self, bundle: Bundle, target: Target, threads: int | None = None) -> Kernels:
        """Kernels for the formats of a bundle's tensors; `threads` as in `Backend.load`."""
        ...


class PromptProgram(Protocol):
    """A bundle's prefill on an NPU. It cuts prompts into chunks of its own."""

    @property
    def place(self) -> str:
        """What it runs on, in words, with what stands in for it."""
        ...

    @property
    def emulated(self) -> bool:
        """Whether it runs in emulation, where times mean nothing."""
        ...

    @property
    def timeline(self) -> Timeline | None:
        """When the jobs of the last prompt ran, from its start; None before one."""
        ...

    def run_prompt(
        self, tokens: NDArray[np.int32], cache: KVCache, logit_rows: int
    ) -> NDArray[np.float32]:
        """Run tokens behind what `cache` holds, and advance it by their count.

        Keys and values are written into the cache that decode reads: no copy is made. Returns
        logits float32 [logit_rows, vocabulary] of the last `logit_rows` tokens.
        """
        ...


@runtime_checkable
class WholeProgram(Program, PromptProgram, Protocol):
    """A bundle's prefill and decoding on an NPU."""

    @property
    def positions(self) -> int:
        """The most tokens that it takes, together."""
        ...


class PromptBackend(Protocol):
    """What makes programs for one unit that runs prompts, and with some bundles decodes too."""

    def fitting(self, bundle: Bundle, machine: Machine) -> list[Target]:
        """The bundle's targets that an NPU of this machine runs, best first; never an emulated."""
        ...

    def check(self, target: Target) -> str:
        """What runs `target` on this machine, in words. Raises LutraError where nothing does."""
        ...

    def load(self, bundle: Bundle, target: Target, threads: int | None = None) -> PromptProgram:
        """Make the bundle's NPU program ready to run on `target`; `threads` are for the CPU's."""
        ...

    def load_whole(self, bundle: Bundle, target: Target) -> WholeProgram:
        """The same, to decode with. Raises UnknownTarget where the program is for prompts alone."""
        ...


def kernels_for(bundle: Bundle, threads: int | None = None) -> tuple[Kernels | None, str]:
    """The kernels of the best target that this machine runs; where it has none, None and why."""
    choice = choose_target("auto", bundle.manifest.artifacts)
    backend = backend_for(choice.target)
    if isinstance(backend, HasKernels):
        return backend.kernels(bundle, choice.target, threads), ""
    return None, choice.note or f"{choice.target} has no kernels"


def prompt_backend_for(target: Target) -> PromptBackend:
    """The prompt backend of a target. Raises UnknownTarget where this version has none."""
    if target.unit not in PROMPT_BACKENDS:
        raise UnknownTarget(
            f"target {target}: this version has no {target.unit} backend for prompts",
            f"use one of {', '.join(PROMPT_BACKENDS)}; `lutra doctor` shows what runs here",
        )
    backend: PromptBackend = importlib.import_module(PROMPT_BACKENDS[target.unit]).BACKEND
    return backend


def choose_prompt_target(bundle: Bundle, machine: Machine | None = None) -> Target | None:
    """The NPU of this machine that the bundle has a program for; None where there is none."""
    if bundle.manifest.npu is None:
        return None
    machine = machine or this_machine()
    for module in dict.fromkeys(PROMPT_BACKENDS.values()):
        backend: PromptBackend = importlib.import_module(module).BACKEND
        if targets := backend.fitting(bundle, machine):
            return targets[0]
    return None


def backend_for(target: Target) -> Backend:
    """The backend of a target. Raises UnknownTarget where this version has none."""
    if target.unit in PROMPT_BACKENDS:
        raise UnknownTarget(
            f"target {target}: the NPU runs what a bundle has for it, there is nothing to compile",
            "use lutra convert --npu SM8650",
        )
    if target.unit not in BACKENDS:
        raise UnknownTarget(
            f"target {target}: this version has no {target.unit} backend",
            f"use one of {', '.join(BACKENDS)}; `lutra doctor` shows what runs here",
        )
    backend: Backend = importlib.import_module(BACKENDS[target.unit]).BACKEND
    return backend


@dataclass(frozen=True)
class Choice:
    """The target to use. `note` says why where it is less than what was asked for."""

    target: Target
    note: str = ""


def choose_target(
    text: str, artifacts: Sequence[Artifact] = (), machine: Machine | None = None
) -> Choice:
    """The target that `text` names, or the next one down where this machine cannot run it.

    "auto" is the best that this machine can run. `artifacts` are the compiled files of the bundle
    that is to run. A target of another kind of machine is returned as it is, for its backend to
    refuse. Raises UnknownTarget for one that no backend knows.
    """
    machine = machine or this_machine()
    if text == "auto":
        return _best(artifacts, machine)
    asked = Target.parse(text)
    backend = backend_for(asked)
    if reason := backend.leaves_out(asked, machine, artifacts):
        for target in backend.targets(machine, artifacts):
            if target.below(asked):
                return Choice(target, f"runs on {target} instead of {asked}: {reason}")
    return Choice(asked)


def target_for(bundle: Bundle, text: str) -> Choice:
    """The target that `text` names, or the next one down, for this bundle on this machine.

    Raises UnknownTarget where nothing here runs it.
    """
    choice = choose_target(text, bundle.manifest.artifacts)
    if refusal := backend_for(choice.target).refuses(choice.target, bundle.graph):
        what = f"{bundle.folder} cannot run on {choice.target}: {refusal}"
        raise UnknownTarget(what, "see lutra doctor")
    return choice


def _best(artifacts: Sequence[Artifact], machine: Machine) -> Choice:
    reasons = []
    for module in BACKENDS.values():
        backend: Backend = importlib.import_module(module).BACKEND
        reason = backend.leaves_out(None, machine, artifacts)
        reasons += [reason] if reason else []
        if targets := backend.targets(machine, artifacts):
            note = f"runs on {targets[0]}: {'; '.join(reasons)}" if reasons else ""
            return Choice(targets[0], note)
    raise UnknownTarget("no backend runs on this machine", "see `lutra doctor`")
