"""Whole models on ARM64, by a library compiled ahead in a Python that has NumPy alone.

Every tiny model, and a trained one in every format, at 1 to 3 threads and 1 to 16 rows at a time,
against the reference here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import edge
from apps.eval import kl_divergence, log_softmax
from converter.convert import convert
from converter.synth import synthesize
from edge.formats import Format
from tests.cpu.arm64.emulator import ALL_FORMATS, PROCESSORS, Emulator
from tests.cpu.harness import ARM
from tests.golden.variants import VARIANTS, token_ids

SCRIPT = Path(__file__).with_name("models.py")
TEXT = "Once upon a time, there was a little girl named Lily. She loved to play outside."

# Relative to the largest logit: of activations as 16-bit integers.
BOUND = 1e-3


@dataclass(frozen=True)
class Job:
    """A model to run; the numbers of threads and of rows go through all pairs, job after job."""

    bundle: str
    threads: int
    rows: int
    ids: list[int]

    @staticmethod
    def of(number: int, bundle: Path, ids: NDArray[np.integer]) -> Job:
        return Job(str(bundle), 1 + number % 3, 1 + 5 * number % 16, [int(i) for i in ids])


Jobs = list[tuple[Job, NDArray[np.float32]]]


@pytest.fixture(scope="module")
def tiny(arm64: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Every piece of math, with what the reference computes."""
    folder, jobs = tmp_path_factory.mktemp("tiny"), []
    for number, (name, variant) in enumerate(VARIANTS.items()):
        source, out = folder / name, folder / f"{name}.lutra"
        synthesize(variant.config, source, seed=variant.seed, dtype="f32")
        convert(source, out, weights="w4g64", head="w4g64", context=variant.context)
        wanted = edge.load(out, target="ref").logits(token_ids())
        jobs.append((Job.of(number, out, token_ids()), wanted))
    return jobs


@pytest.fixture(scope="module")
def trained(arm64: Emulator, stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """A trained model in every format."""
    folder, jobs = tmp_path_factory.mktemp("trained"), []
    for number, form in enumerate(ALL_FORMATS):
        out = folder / f"{form}.lutra"
        convert(stories, out, weights=form, head=form)
        reference = edge.load(out, target="ref")
        ids = np.array(reference.encode(TEXT))
        wanted = reference.logits(ids)
        jobs.append((Job.of(number + 1, out, ids), wanted))
        if Format.parse(form).bits <= 2:  # a row or two are decoded by tables
            job = Job(str(out), threads=3, rows=2, ids=[int(i) for i in ids[:9]])
            jobs.append((job, wanted[:9]))
    return jobs


def ran(
    arm64: Emulator, target: str, library: Path, jobs: Jobs, folder: Path
) -> list[NDArray[np.float32]]:
    """The logits that the emulated machine computes."""
    file, out = folder / "jobs.json", folder / "logits.npz"
    file.write_text(json.dumps([asdict(job) for job, _ in jobs]))
    arm64.run(SCRIPT, library, target, file, out, processor=PROCESSORS[target])
    with np.load(out) as arrays:
        return [arrays[str(number)] for number in range(len(jobs))]


def test_jobs_go_through_all_threads_and_rows() -> None:
    jobs = [Job.of(number, Path(), np.arange(2)) for number in range(len(VARIANTS))]
    assert {(job.threads, job.rows) for job in jobs} == {
        (threads, rows) for threads in (1, 2, 3) for rows in range(1, 17)
    }


@pytest.mark.parametrize("target", ARM)
def test_every_tiny_model_is_as_the_reference(
    arm64: Emulator, libraries: dict[str, Path], tiny: Jobs, target: str, tmp_path: Path
) -> None:
    made = ran(arm64, target, libraries[target], tiny, tmp_path)
    for (job, wanted), logits in zip(tiny, made, strict=True):
        assert np.abs(logits - wanted).max() < BOUND * np.abs(wanted).max(), job


@pytest.mark.parametrize("target", ARM)
def test_predictions_in_every_format_stay_those_of_the_reference(
    arm64: Emulator, libraries: dict[str, Path], trained: Jobs, target: str, tmp_path: Path
) -> None:
    made = ran(arm64, target, libraries[target], trained, tmp_path)
    for (job, wanted), logits in zip(trained, made, strict=True):
        assert kl_divergence(log_softmax(wanted), log_softmax(logits)).mean() < 1e-5, job
