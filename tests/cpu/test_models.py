"""Whole models on every instruction set of x86-64, by libraries compiled ahead, in a Python that
has NumPy alone, against the reference here.

`arm64` has the same for ARM64. AMX code is emulated where the machine has no AMX.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from apps.eval import kl_divergence, log_softmax
from cpu.native import compile_library
from edge.formats import Format
from edge.target import Target, this_machine
from tests.cpu.amx import emulator
from tests.cpu.bare import Bare
from tests.cpu.harness import X86, isa_of
from tests.cpu.model_jobs import (
    ALL_FORMATS,
    Job,
    Known,
    Logits,
    drawn_text,
    every_format,
    every_tiny_model,
    run,
)

pytest.importorskip("ziglang", reason="libraries are linked by it")

*PLAIN, AMX = X86
every_target = pytest.mark.parametrize("target", [*PLAIN, pytest.param(AMX, marks=pytest.mark.amx)])

# Runs jobs on a target; the logits of each prompt of each job.
Run = Callable[[str, list[Job]], list[list[Logits]]]

THREADS = (1, 2, 3)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Bare:
    return Bare.in_folder(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[Known]:
    return every_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Known]:
    return every_format(stories, tmp_path_factory.mktemp("trained"), drawn_text)


@pytest.fixture
def computed(bare: Bare, tmp_path: Path) -> Run:
    def compute(target: str, jobs: list[Job]) -> list[list[Logits]]:
        performed = target == AMX and not emulator.has_amx()
        if not performed and (reason := this_machine().mismatch(Target.parse(target))):
            pytest.skip(reason)
        library = tmp_path / "kernels.so"
        compile_library(map(Format.parse, ALL_FORMATS), isa_of(target), library)
        extra = [emulator.built()] * performed
        return run(bare.run, library, target, jobs, tmp_path, *extra)

    return compute


@every_target
def test_every_tiny_model_is_as_the_reference(
    target: str, tiny: list[Known], computed: Run
) -> None:
    """Row by row, in steps of a few, and all at once, which takes AMX's rows as bfloat16."""
    prompts = ([1] * 24, [2, 3, 4, 5, 10], [24])
    jobs = [model.job(1 + number % 3, prompts) for number, model in enumerate(tiny)]
    bounds = (3e-4, 3e-4, 5e-2 if target == AMX else 3e-4)
    for model, job, made in zip(tiny, jobs, computed(target, jobs), strict=True):
        for logits, bound in zip(made, bounds, strict=True):
            error = np.linalg.norm(logits - model.logits) / np.linalg.norm(model.logits)
            assert error < bound, job


@every_target
def test_predictions_stay_those_of_the_reference(
    target: str, trained: dict[str, Known], computed: Run
) -> None:
    """In every format at every number of threads: a step of each number of rows from 1 to 16, what
    is left of the context at once, and a prompt of another length for each, from 1 token to all.
    """
    context, steps = len(trained["f32"].ids), list(range(1, 17))
    pairs = [(form, threads) for form in ALL_FORMATS for threads in THREADS]
    if target == AMX:  # emulated tiles take their time: once a format, one thread after the other
        pairs = [pair for number, pair in enumerate(pairs) if number % 3 == number // 3 % 3]
    prompts = [
        [[*steps, context - sum(steps)], [int(length)]]
        for length in np.linspace(1, context, len(pairs))
    ]
    if target == AMX:  # and of the prompts by turns one
        prompts = [both[number % 2 :][:1] for number, both in enumerate(prompts)]
    jobs = [
        trained[form].job(threads, some)
        for (form, threads), some in zip(pairs, prompts, strict=True)
    ]
    for (form, _), job, made in zip(pairs, jobs, computed(target, jobs), strict=True):
        wanted = job.wanted(trained[form].logits)
        for ours, theirs in zip(made, wanted, strict=True):
            kl = kl_divergence(log_softmax(theirs), log_softmax(ours)).mean()
            assert kl < (1e-3 if target == AMX else 1e-4), (form, job.threads, job.prompts)
