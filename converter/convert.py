"""The conversion: open a checkpoint, build the graph, plan, encode tensor by tensor, write."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from converter.ahead import compile_ahead
from converter.blas import suited_to
from converter.calibrate import FloatTensors
from converter.calibrated import Task, encode_calibrated
from converter.fold import Folds, combine
from converter.keep import plan_source
from converter.mixed import measure, mix, widths_for
from converter.models import build_model
from converter.models.builder import Model
from converter.npu import NpuPlan, Origins, build_npu, npu_bytes
from converter.plan import Formats, Plan, PlannedTensor
from converter.quality import FAST, Quality
from converter.quantize.allocate import parse_size
from converter.quantize.awq import by_gptq, to_nearest
from converter.quantize.rtn import fit_tensor_scale, quantize_rows
from converter.refine import Draft, refine
from converter.reorder import in_order
from converter.rotate import rotate
from converter.samples import MOST_DRAWN, PROBE, WANTED, KeptTensors, Samples, choose_samples
from converter.scaling import find_scales
from converter.sources.open import open_source
from converter.sources.source import Source, check_unchanged, describe
from converter.sources.tokenizer import read_tokenizer
from converter.weights import Weights
from edge.backend import backend_for
from edge.bundle_writer import RESUME, BundleWriter
from edge.disk import disk_errors
from edge.errors import BadTemplate, BadWeights, MissingDependency, TruncatedSource, UsageError
from edge.formats import Format
from edge.graph import Linear
from edge.manifest import (
    SCHEMA,
    TOKENIZER,
    GenerationDefaults,
    GraphSize,
    Manifest,
    TensorRecord,
    TokenizerRecord,
)
from edge.model import TRANSFORMERS_SAMPLING
from edge.planes import TILE, StoredTensor, dequantize, pack
from edge.sampler import Sampling
from edge.target import Target
from edge.template import ChatTemplate
from edge.version import VERSION
from edge.watch import Silent, Watcher

DEFAULT_CHUNK = 256
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Job:
    """A conversion that is known to be possible: everything but the work itself.

    `notes` are what the user should know of tensors that are quantized in the source. `folds` are
    what is multiplied into the weights; with `scaled`, scales by activation come on top.
    `fingerprint` is the checkpoint's when it was opened.
    """

    checkpoint: Source
    model: Model
    plan: Plan
    chunk: int
    targets: tuple[Target, ...] = ()
    npu: NpuPlan | None = None
    notes: tuple[str, ...] = ()
    quality: Quality = FAST
    folds: Folds = field(default_factory=dict)
    scaled: bool = False
    fingerprint: Mapping[str, list[int]] = field(default_factory=dict)

    @property
    def weights(self) -> Weights:
        return Weights(self.model, self.checkpoint, self.folds)

    @property
    def key(self) -> str:
        """What an interrupted conversion must have in common with this one to be gone on with."""
        facts = {
            "schema": SCHEMA,
            "lutra": VERSION,
            "source": self.fingerprint,
            "config": self.checkpoint.config,
            "context": self.model.graph.context,  # longrope's frequencies depend on it
            "plan": [[p.tensor.name, p.tensor.shape, str(p.form)] for p in self.plan.tensors],
            "quality": self.quality.key,
            "folds": [bool(self.folds), self.scaled],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def prepare(
    source: str | Path,
    formats: Formats,
    *,
    context: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    revision: str | None = None,
    targets: Sequence[str] = (),
    lora: Sequence[str] = (),
    quality: Quality = FAST,
    npu: NpuPlan | None = None,
    size: str | None = None,
    rotated: bool = False,
    scaled: bool = False,
    watcher: Watcher | None = None,
) -> Job:
    """Open and check a checkpoint and plan its conversion, reading no weights but their headers.

    `targets` are those to compile for, in their text form; `lora` adapters to merge, as FOLDER or
    FOLDER:SCALE; `npu` what to make for NPUs; `rotated` folds Hadamard rotations into the weights,
    `scaled` activation-aware scales. Raises UnknownTarget, and the errors of `converter.sources`,
    `converter.models`, `converter.rotate` and `Weights.check`.
    """
    parsed = tuple(dict.fromkeys(Target.parse(text) for text in targets))
    for target in parsed:
        backend_for(target)
    checkpoint = open_source(source, revision, lora)
    fingerprint = checkpoint.fingerprint
    model = build_model(checkpoint.config, context)
    weights = Weights(model, checkpoint)
    weights.check()
    weights = rotate(weights) if rotated else in_order(weights)
    if npu is not None:
        npu.check(weights.model.graph, quality.method)
    plan, notes = plan_source(weights, formats)
    scaled = scaled or (quality.method is not None and quality.method.scaled)
    job = Job(checkpoint, weights.model, plan, chunk, parsed, npu, notes, quality, weights.folds)
    job = replace(job, scaled=scaled, fingerprint=fingerprint)
    return job if size is None else _mixed(job, size, watcher or Silent())


def _mixed(job: Job, size: str, watcher: Watcher) -> Job:
    """The job with its tensors' widths chosen for a size, from what each is measured to cost."""
    budget = parse_size(size, job.plan.parameter_count)
    widths = widths_for(job.plan, budget)
    record, tokenizer = read_tokenizer(job.checkpoint)
    text = job.quality.text
    method = job.quality.method
    effort = None if method is None else method.effort
    with suited_to(job.model.graph):
        samples = choose_samples(job.model, job.weights, record.bos_id, tokenizer, text, PROBE)
        found = measure(job.weights, job.plan, widths, samples, effort, watcher)
    return replace(job, plan=mix(job.plan, found, budget))


def run(
    job: Job, out: Path, *, overwrite: bool = False, watcher: Watcher | None = None
) -> Manifest:
    """Do the work of a job and return the manifest written.

    Raises OutputExists, NoSpace or BadWeights; nothing is at `out` then, and what was done is gone
    on with by the next run.
    """
    watcher = watcher or Silent()
    for text in job.notes:
        watcher.note(text)
    tensors = {p.tensor.name: (p.form, p.tensor.shape) for p in job.plan.tensors}
    tokenizer, tokenizer_json = read_tokenizer(job.checkpoint)
    _check_template(tokenizer, watcher)
    generation = read_generation(job.checkpoint.read_json(GENERATION))
    beside = npu_bytes(job.npu, job.model.graph)
    with (
        BundleWriter(out, tensors, job.key, beside_bytes=beside, overwrite=overwrite) as writer,
        suited_to(job.model.graph),
    ):
        artifacts = compile_ahead(job.plan, job.targets, writer, watcher)
        sampler = _Sampler(job, tokenizer.bos_id, tokenizer_json, watcher)
        if job.scaled and (job.npu is not None or not _done(job, writer)):
            job = _scale(job, sampler(), watcher)
        _encode_all(job, writer, watcher, sampler)
        _refine(job, writer, watcher, sampler)
        if tokenizer_json is not None:
            writer.add_file(TOKENIZER, tokenizer_json)
        npu = None
        with disk_errors(out, RESUME):
            if job.npu is not None:
                origin = Origins(job.model, job.weights, tokenizer.bos_id, tokenizer_json)
                npu = build_npu(job.npu, origin, writer, watcher, job.quality.method)
        watcher.start("checksums", job.plan.byte_count, "B")
        manifest = Manifest(
            lutra=VERSION,
            name=job.checkpoint.name,
            source=describe(job.checkpoint),
            model_type=str(job.checkpoint.config["model_type"]),
            config=job.checkpoint.config,
            tokenizer=tokenizer,
            generation=generation,
            graph=job.model.graph,
            graph_sizes=(GraphSize("decode", 1, 1), GraphSize("prefill", job.chunk, 1)),
            tensors={
                p.tensor.name: TensorRecord(p.form, writer.finished[p.tensor.name]["rms"])
                for p in job.plan.tensors
            },
            files=writer.records(watcher.advance),
            artifacts=artifacts,
            npu=npu,
        )
        check_unchanged(job.checkpoint, job.fingerprint)
        writer.finish(manifest.to_text())
    return manifest


def convert(
    source: str | Path,
    out: str | Path,
    *,
    weights: str | None = None,
    head: str | None = None,
    embedding: str | None = None,
    context: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    targets: Sequence[str] = (),
    lora: Sequence[str] = (),
    quality: str = "fast",
    calibration: str | Path | None = None,
    npu: NpuPlan | None = None,
    size: str | None = None,
    rotated: bool = False,
    scaled: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> Manifest:
    """Convert a checkpoint into a bundle: `prepare` and `run` in one, for Python callers.

    Without `weights`, a quantized source keeps its formats, and floats become w4g64.
    """
    formats = Formats.parse(weights, head, embedding)
    text = None if calibration is None else Path(calibration)
    job = prepare(
        source,
        formats,
        context=context,
        chunk=chunk,
        targets=targets,
        lora=lora,
        quality=Quality.parse(quality, text),
        npu=npu,
        size=size,
        rotated=rotated,
        scaled=scaled,
        watcher=watcher,
    )
    return run(job, Path(out), overwrite=overwrite, watcher=watcher)


def read_generation(values: dict[str, Any]) -> GenerationDefaults:
    """Sampling defaults of a generation_config.json that asks for sampling; else none.

    One that asks for it without a value has Transformers' temperature, so that it is told from
    one that does not ask. Raises TruncatedSource for values that nothing can be drawn with.
    """
    if not values.get("do_sample"):
        return GenerationDefaults()
    numbers = {"temperature": TRANSFORMERS_SAMPLING.temperature} | {
        field.name: values[field.name]
        for field in fields(GenerationDefaults)
        if isinstance(values.get(field.name), int | float)
    }
    try:
        made: dict[str, Any] = {
            key: int(value) if key == "top_k" else float(value) for key, value in numbers.items()
        }
        Sampling(**made)
        return GenerationDefaults(**made)
    except (UsageError, ArithmeticError, ValueError) as error:
        raise TruncatedSource(f"{GENERATION}: {error}", "correct it, or remove the key") from error


def _check_template(record: TokenizerRecord, watcher: Watcher) -> None:
    """Note a chat template that does not compile; without jinja2, it shows up in use."""
    if record.chat_template is None:
        return
    with suppress(MissingDependency):
        try:
            ChatTemplate(record.chat_template, record.special_tokens)
        except BadTemplate as error:
            watcher.note(f"note: {error.what}")
            watcher.note("      lutra chat will not work with this bundle, lutra run --raw will")


class _Sampler:
    """The samples that a conversion calibrates on: taken when first asked for, then kept."""

    def __init__(
        self, job: Job, start: int | None, tokenizer: bytes | None, watcher: Watcher
    ) -> None:
        self._job = job
        self._start = start
        self._tokenizer = tokenizer
        self._watcher = watcher
        self._taken: Samples | None = None

    def __call__(self) -> Samples:
        if self._taken is None:
            job, method = self._job, self._job.quality.method
            wanted = WANTED if method is None else method.samples
            self._watcher.start("samples", wanted.count, "tokens")
            self._taken = choose_samples(
                job.model, job.weights, self._start, self._tokenizer, job.quality.text, wanted
            )
            self._watcher.note(f"calibration: {self._taken.count} tokens, {self._taken.origin}")
        return self._taken


def _done(job: Job, writer: BundleWriter) -> bool:
    return all(p.tensor.name in writer.finished for p in job.plan.tensors)


def _scale(job: Job, samples: Samples, watcher: Watcher) -> Job:
    """The job with activation-aware scales folded in, for the way its weights are rounded."""
    rounding = to_nearest if job.quality.method is None else by_gptq
    kept = {p.tensor.name for p in job.plan.tensors if p.kept}
    found = find_scales(job.weights, _multiplied(job), kept, samples, rounding, watcher)
    return replace(job, folds=combine(job.folds, found))


def _encode_all(job: Job, writer: BundleWriter, watcher: Watcher, sampler: _Sampler) -> None:
    output = _Output(job, writer, watcher)
    finished = [p for p in job.plan.tensors if output.finished(p.tensor.name)]
    if finished:
        watcher.note(f"going on: {len(finished)} of {len(job.plan.tensors)} tensors are done")
    method = job.quality.method
    calibrated = {} if method is None else _multiplied(job)
    task = None
    if method is not None and not all(output.finished(name) for name in calibrated):
        task = Task(job.model.graph, job.weights, calibrated, sampler(), method)
    watcher.start("weights", job.plan.weight_count, "weights")
    watcher.advance(sum(p.weight_count for p in finished))
    if task is not None:
        encode_calibrated(task, output, watcher)
    for planned in job.plan.tensors:
        output.plain(planned.tensor.name)


def _refine(job: Job, writer: BundleWriter, watcher: Watcher, sampler: _Sampler) -> None:
    """Learn what was written further, where the quality asks for it and the model is small.

    Interrupted while it writes, it learns on from what is there.
    """
    method = job.quality.method
    if method is None or method.refinement is None or job.model.graph.parameter_count > MOST_DRAWN:
        return
    learned = {
        p.tensor.name: p
        for p in job.plan.tensors
        if p.tensor.role == "vector" or (p.form.quantized and not p.kept)
    }
    if all("gain" in writer.finished[name] for name in learned):
        return
    exact = KeptTensors(job.model.graph, FloatTensors(job.weights))
    stored = {p.tensor.name: writer.read(p.tensor.name) for p in job.plan.tensors}
    draft = Draft(job.model.graph, exact, stored, frozenset(learned))
    made = refine(draft, sampler(), method.refinement, watcher)
    for name, planned in learned.items():
        record = dict(writer.finished[name])
        if name in made.vectors:
            writer.write(name, {"values": made.vectors[name]})
        if name in made.matrices:
            writer.write(name, pack(planned.form, made.matrices[name]))
            rows = exact.dense(name)
            noise = _power(dequantize(planned.form, made.matrices[name]) - rows)
            record["rms"] = math.sqrt(noise / (_power(rows) or 1.0))
        writer.done(name, record | {"gain": made.gain})


def _multiplied(job: Job) -> dict[str, PlannedTensor]:
    """The tensors that are quantized here and multiplied with activations."""
    multiplied = {op.weight for op in job.model.graph.ops() if isinstance(op, Linear)}
    return {
        p.tensor.name: p
        for p in job.plan.tensors
        if p.form.quantized and p.tensor.name in multiplied and not p.kept
    }


class _Output:
    """Tensors of a job on their way to the disk. See `converter.calibrated.Output`."""

    def __init__(self, job: Job, writer: BundleWriter, watcher: Watcher) -> None:
        self._job = job
        self._writer = writer
        self._watcher = watcher
        self._planned = {p.tensor.name: p for p in job.plan.tensors}

    def finished(self, name: str) -> bool:
        return name in self._writer.finished

    def plain(self, name: str) -> None:
        if not self.finished(name):
            planned = self._planned[name]
            encode = _keep if planned.kept else _encode
            self.done(name, encode(self._job.weights, planned, self._writer, self._watcher))

    def write(self, name: str, arrays: Mapping[str, np.ndarray[Any, Any]], first: int) -> None:
        self._writer.write(name, arrays, first)

    def done(self, name: str, rms: float) -> None:
        self._writer.done(name, {"rms": rms})

    def read(self, name: str) -> StoredTensor:
        return self._writer.read(name)


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
        signal += _power(rows)
        noise += _power(rows - restored)
        watcher.advance(rows.size)
    return math.sqrt(noise / signal) if signal else 0.0


def _keep(
    weights: Weights, planned: PlannedTensor, writer: BundleWriter, watcher: Watcher
) -> float:
    """Write a tensor's own integers block by block; returns the error that this makes, none."""
    name = planned.tensor.name
    for first, quantized in weights.codes(name):
        arrays = pack(planned.form, quantized)
        if planned.form.granularity == "tensor":
            writer.write(name, {"scales": arrays.pop("scales")})
        writer.write(name, arrays, first // TILE)
        watcher.advance(quantized.codes.size)
    return 0.0


def _power(values: np.ndarray[Any, Any]) -> float:
    """Sum of squares; in float64, since float32 ends at weights of 1e19."""
    return float(np.square(values, dtype=np.float64).sum())


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
