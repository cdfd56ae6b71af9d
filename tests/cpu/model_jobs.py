"""Whole models for `models` to run, each with the logits that the reference computes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import edge
from converter.convert import convert
from converter.synth import synthesize
from edge.generate import stream_tokens
from edge.model import Model
from edge.sampler import Sampler
from tests.cpu.harness import FORMATS
from tests.golden.variants import VARIANTS, token_ids

Logits = NDArray[np.float32]

SCRIPT = Path(__file__).with_name("models.py")
ALL_FORMATS = (*FORMATS, "f16", "f32")
TEXT = "Once upon a time, there was a little girl named Lily. She loved to play outside."


@dataclass(frozen=True)
class Job:
    """A model to run on `prompts`, which are the numbers of tokens of their steps."""

    bundle: str
    threads: int
    ids: list[int]
    prompts: list[list[int]]

    def wanted(self, logits: Logits) -> list[Logits]:
        """Of the logits of `ids`, those of each prompt."""
        return [logits[: sum(prompt)] for prompt in self.prompts]

    def parted(self, logits: Logits) -> list[Logits]:
        """The logits of all prompts, one behind the other, as those of each."""
        ends = list(itertools.accumulate(map(sum, self.prompts)))
        assert len(logits) == ends[-1]
        return np.split(logits, ends[:-1])


@dataclass(frozen=True)
class Known:
    """A model whose logits of `ids` are known."""

    bundle: Path
    ids: NDArray[np.integer]
    logits: Logits

    def job(self, threads: int, prompts: Sequence[Sequence[int]]) -> Job:
        ids = [int(i) for i in self.ids]
        return Job(str(self.bundle), threads, ids, [list(prompt) for prompt in prompts])


def every_tiny_model(folder: Path) -> list[Known]:
    """Every piece of math, at 4 bits."""
    made = []
    for name, variant in VARIANTS.items():
        source, out = folder / name, folder / f"{name}.lutra"
        synthesize(variant.config, source, seed=variant.seed, dtype="f32")
        convert(source, out, weights="w4g64", head="w4g64", context=variant.context)
        logits = edge.load(out, target="ref").logits(token_ids())
        made.append(Known(out, token_ids(), logits))
    return made


def every_format(
    stories: Path, folder: Path, text: Callable[[Model], NDArray[np.integer]]
) -> dict[str, Known]:
    """A trained model in every format, on a text that may be drawn by the one in float32."""
    bundles = {form: folder / f"{form}.lutra" for form in ALL_FORMATS}
    for form, out in bundles.items():
        convert(stories, out, weights=form, head=form)
    ids = text(edge.load(bundles["f32"], target="ref"))
    return {
        form: Known(out, ids, edge.load(out, target="ref").logits(ids))
        for form, out in bundles.items()
    }


def drawn_text(model: Model) -> NDArray[np.int32]:
    """As many tokens as the context takes, of which the model draws nearly all."""
    session = model.session()
    session.tokens.extend(model.encode(TEXT))
    sampler = Sampler(edge.Sampling(seed=1))
    drawn = stream_tokens(model.program, session.cache, session.tokens, sampler)
    while len(session.tokens) < session.cache.context:
        next(drawn)
    return np.array(session.tokens, np.int32)


def run(
    python: Callable[..., str],
    library: Path,
    target: str,
    jobs: Sequence[Job],
    folder: Path,
    *emulator: Path,
) -> list[list[Logits]]:
    """What a Python, called with words, computes for each prompt of each job."""
    file, out = folder / "jobs.json", folder / "logits.npz"
    file.write_text(json.dumps([asdict(job) for job in jobs]))
    python(SCRIPT, library, target, file, out, *emulator)
    with np.load(out) as arrays:
        return [job.parted(arrays[str(number)]) for number, job in enumerate(jobs)]
