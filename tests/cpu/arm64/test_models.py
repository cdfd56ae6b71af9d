"""Whole models on ARM64, by a library compiled ahead in a Python that has NumPy alone.

Every tiny model, and a trained one in every format, at 1 to 3 threads and 1 to 16 rows at a time,
against the reference here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from apps.eval import kl_divergence, log_softmax
from edge.formats import Format
from tests.cpu.arm64.emulator import PROCESSORS, Emulator
from tests.cpu.harness import ARM
from tests.cpu.model_jobs import TEXT, Job, Known, Logits, every_format, every_tiny_model, run
from tests.golden.variants import VARIANTS

# Relative to the largest logit: of activations as 16-bit integers.
BOUND = 1e-3

Jobs = list[tuple[Job, Known]]


def pair(number: int) -> tuple[int, int]:
    """Threads, and rows of a step: they go through all pairs, job after job."""
    return 1 + number % 3, 1 + 5 * number % 16


def job_of(number: int, model: Known) -> Job:
    threads, rows = pair(number)
    whole, left = divmod(len(model.ids), rows)
    return model.job(threads, [[rows] * whole + [left] * bool(left)])


@pytest.fixture(scope="module")
def tiny(arm64: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Every piece of math, with what the reference computes."""
    models = every_tiny_model(tmp_path_factory.mktemp("tiny"))
    return [(job_of(number, model), model) for number, model in enumerate(models)]


@pytest.fixture(scope="module")
def trained(arm64: Emulator, stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """A trained model in every format."""
    jobs: Jobs = []
    folder = tmp_path_factory.mktemp("trained")
    models = every_format(stories, folder, lambda model: np.array(model.encode(TEXT)))
    for number, (form, model) in enumerate(models.items()):
        jobs.append((job_of(number + 1, model), model))
        if Format.parse(form).bits <= 2:  # a row or two are decoded by tables
            jobs.append((model.job(3, [[2, 2, 2, 2, 1]]), model))
    return jobs


def ran(
    arm64: Emulator, target: str, library: Path, jobs: Jobs, folder: Path
) -> list[tuple[Job, Logits, Logits]]:
    """Each job with the logits that the emulated machine computes, and those of the reference."""
    python = partial(arm64.run, processor=PROCESSORS[target])
    made = run(python, library, target, [job for job, _ in jobs], folder)
    return [
        (job, ours, *job.wanted(model.logits))
        for (job, model), (ours,) in zip(jobs, made, strict=True)
    ]


def test_jobs_go_through_all_threads_and_rows() -> None:
    assert {pair(number) for number in range(len(VARIANTS))} == {
        (threads, rows) for threads in (1, 2, 3) for rows in range(1, 17)
    }


@pytest.mark.parametrize("target", ARM)
def test_every_tiny_model_is_as_the_reference(
    arm64: Emulator, libraries: dict[str, Path], tiny: Jobs, target: str, tmp_path: Path
) -> None:
    for job, ours, wanted in ran(arm64, target, libraries[target], tiny, tmp_path):
        assert np.abs(ours - wanted).max() < BOUND * np.abs(wanted).max(), job


@pytest.mark.parametrize("target", ARM)
def test_predictions_in_every_format_stay_those_of_the_reference(
    arm64: Emulator, libraries: dict[str, Path], trained: Jobs, target: str, tmp_path: Path
) -> None:
    for job, ours, wanted in ran(arm64, target, libraries[target], trained, tmp_path):
        assert kl_divergence(log_softmax(wanted), log_softmax(ours)).mean() < 1e-5, job
