"""The conversion: open a checkpoint, build the graph, plan, encode tensor by tensor, write."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converter.models import build_model
from converter.models.builder import Model
from converter.plan import Formats, Plan, PlannedTensor, make_plan
from converter.quantize.rtn import fit_tensor_scale, quantize_rows
from converter.sources.huggingface import Checkpoint, open_checkpoint
from converter.sources.tokenizer import read_tokenizer
from converter.watch import Silent, Watcher
from converter.weights import Weights
from edge.bundle_writer import BundleWriter
from edge.errors import BadWeights
from edge.formats import Format
from edge.manifest import (
    SCHEMA,
    TOKENIZER,
    GenerationDefaults,
    GraphSize,
    Manifest,
    TensorRecord,
)
from edge.planes import TILE, dequantize, pack
from edge.version import VERSION

DEFAULT_CHUNK = 256


@dataclass(frozen=True)
class Job:
    """A conversion that is known to be possible: everything but the work itself."""

    checkpoint: Checkpoint
    model: Model
    plan: Plan
    chunk: int

    @property
    def weights(self) -> Weights:
        return Weights(self.model, self.checkpoint)

    @property
    def key(self) -> str:
        """What an interrupted conversion must have in common with this one to be gone on with."""
        facts = {
            "schema": SCHEMA,
            "lutra": VERSION,
            "source": self.checkpoint.fingerprint,
            "config": self.checkpoint.config,
            "plan": [[p.tensor.name, p.tensor.shape, str(p.form)] for p in self.plan.tensors],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def prepare(
    source: str | Path,
    formats: Formats,
    *,
    context: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    revision: str | None = None,
) -> Job:
    """Open and check a checkpoint and plan its conversion, reading no weights but their headers.

    Raises the errors of `converter.sources`, `converter.models` and `Weights.check`.
    """
    checkpoint = open_checkpoint(source, revision)
    model = build_model(checkpoint.config, context)
    job = Job(checkpoint, model, make_plan(model.graph, formats), chunk)
    job.weights.check()
    return job


def run(
    job: Job, out: Path, *, overwrite: bool = False, watcher: Watcher | None = None
) -> Manifest:
    """Do the work of a job and return the manifest written.

    Raises OutputExists, NoSpace or BadWeights; nothing is at `out` then, and what was done is gone
    on with by the next run.
    """
    watcher = watcher or Silent()
    tensors = {p.tensor.name: (p.form, p.tensor.shape) for p in job.plan.tensors}
    tokenizer, tokenizer_json = read_tokenizer(job.checkpoint)
    with BundleWriter(out, tensors, job.key, overwrite=overwrite) as writer:
        _encode_all(job, writer, watcher)
        if tokenizer_json is not None:
            writer.add_file(TOKENIZER, tokenizer_json)
        watcher.start("checksums", job.plan.byte_count, "B")
        manifest = Manifest(
            lutra=VERSION,
            name=job.checkpoint.name,
            model_type=str(job.checkpoint.config["model_type"]),
            config=job.checkpoint.config,
            tokenizer=tokenizer,
            generation=read_generation(job.checkpoint.read_json("generation_config.json")),
            graph=job.model.graph,
            graph_sizes=(GraphSize("decode", 1, 1), GraphSize("prefill", job.chunk, 1)),
            tensors={
                p.tensor.name: TensorRecord(p.form, writer.finished[p.tensor.name]["rms"])
                for p in job.plan.tensors
            },
            files=writer.records(watcher.advance),
        )
        writer.finish(manifest.to_text())
    return manifest


def convert(
    source: str | Path,
    out: str | Path,
    *,
    weights: str = "w4g64",
    head: str | None = None,
    embedding: str | None = None,
    context: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> Manifest:
    """Convert a checkpoint into a bundle: `prepare` and `run` in one, for Python callers."""
    job = prepare(source, Formats.parse(weights, head, embedding), context=context, chunk=chunk)
    return run(job, Path(out), overwrite=overwrite, watcher=watcher)


def read_generation(values: dict[str, Any]) -> GenerationDefaults:
    """Sampling defaults of a generation_config.json that asks for sampling; else none."""
    if not values.get("do_sample"):
        return GenerationDefaults()

    def number(key: str) -> float | None:
        value = values.get(key)
        return float(value) if isinstance(value, int | float) else None

    top_k = number("top_k")
    return GenerationDefaults(
        temperature=number("temperature"),
        top_k=None if top_k is None else int(top_k),
        top_p=number("top_p"),
        min_p=number("min_p"),
        repetition_penalty=number("repetition_penalty"),
    )


def _encode_all(job: Job, writer: BundleWriter, watcher: Watcher) -> None:
    finished = [p for p in job.plan.tensors if p.tensor.name in writer.finished]
    if finished:
        watcher.note(f"going on: {len(finished)} of {len(job.plan.tensors)} tensors are done")
    watcher.start("weights", job.plan.weight_count, "weights")
    watcher.advance(sum(p.weight_count for p in finished))
    for planned in job.plan.tensors:
        if planned.tensor.name not in writer.finished:
            error = _encode(job.weights, planned, writer, watcher)
            writer.done(planned.tensor.name, {"rms": error})


def _encode(
    weights: Weights, planned: PlannedTensor, writer: BundleWriter, watcher: Watcher
) -> float:
    """Encode and write one tensor block by block; returns its relative RMS error."""
    name, form = planned.tensor.name, planned.form
    scale = None
    if form.granularity == "tensor":
        scale = fit_tensor_scale(lambda: (rows for _, rows in weights.blocks(name)))
    signal = noise = 0.0
    for first, rows in weights.blocks(name):
        try:
            restored = _encode_block(name, form, first, rows, scale, writer)
        except BadWeights as error:
            raise BadWeights(f"tensor {name}: {error.what}", error.cure) from error
        signal += float(np.vdot(rows, rows))
        noise += float(np.vdot(rows - restored, rows - restored))
        watcher.advance(rows.size)
    return math.sqrt(noise / signal) if signal else 0.0


def _encode_block(
    name: str,
    form: Format,
    first: int,
    rows: np.ndarray[Any, Any],
    scale: float | None,
    writer: BundleWriter,
) -> np.ndarray[Any, Any]:
    """Encode and write rows `first` and on; returns what they decode to."""
    if not form.quantized:
        values = _narrow(rows, form)
        writer.write(name, {"values": values}, first)
        return values.astype(np.float32)
    quantized = quantize_rows(form, rows, scale)
    arrays = pack(form, quantized)
    if form.granularity == "tensor":
        writer.write(name, {"scales": arrays.pop("scales")})
    writer.write(name, arrays, first // TILE)
    return dequantize(form, quantized)


def _narrow(rows: np.ndarray[Any, Any], form: Format) -> np.ndarray[Any, Any]:
    with np.errstate(over="ignore"):
        values = rows.astype(f"float{form.bits}")
    if not np.isfinite(values).all():
        raise BadWeights(
            f"weights reach {np.abs(rows).max():.3g}, over the range of {form}", "use f32"
        )
    return values
