"""A bundle's prefill on an NPU and the CPU, chunk by chunk, out of order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle
from edge.graph import Linear
from edge.jobs import NPU, Job, Part, Stage, chunk_jobs
from edge.kvcache import KVCache
from edge.npu import Codes, NpuRecord
from edge.pieces import Piece
from edge.reference import Step, Values
from edge.schedule import IN_ORDER, Action, Rule, Timeline, best_rule, run
from npu.htp.chunks import cut
from npu.htp.floats import Floats, Made
from npu.htp.lower import padded_width
from npu.htp.placed import Placed
from npu.htp.shadow import Extracted, ShadowWeights
from npu.htp.stages import OUTLIERS, FloatWork, PieceWork, make_stages, needed_later

if TYPE_CHECKING:
    import onnxruntime

# Seconds that a job is expected to take before any was measured: a piece, and what is between two.
_FIRST_GUESS_S = {NPU: 2e-3, "cpu": 1e-3}


@dataclass
class Chunk:
    """One chunk on its way: its step of the interpreter, and what goes to and from the NPU."""

    step: Step
    given: dict[str, Codes] = field(default_factory=dict)
    found: dict[str, Extracted] = field(default_factory=dict)
    made: dict[str, Codes] = field(default_factory=dict)
    restored: dict[str, Values] = field(default_factory=dict)


@dataclass
class Tally:
    """Multiply-adds of projections since loading: the NPU's, and the CPU's for outliers."""

    npu: int = 0
    outliers: int = 0

    @property
    def outlier_share(self) -> float:
        return self.outliers / self.npu if self.npu else 0.0


class HtpProgram:
    """Prefill with static pieces on an NPU. See `edge.pair.PromptProgram`.

    `sessions` are the pieces' by name. `in_order` makes each processor take its jobs in order, for
    comparison. `timeline` has the times of the last prompt. `floats` does the CPU's part.
    """

    def __init__(
        self,
        bundle: Bundle,
        record: NpuRecord,
        placed: Placed,
        sessions: Mapping[str, onnxruntime.InferenceSession],
        shadow: ShadowWeights,
        floats: Floats,
    ) -> None:
        self.place = f"{placed.text} with {floats.place} beside it"
        self.emulated = placed.emulated
        self.target = placed.target
        self.rows = record.rows
        self.in_order = False
        self.timeline: Timeline | None = None
        self.tally = Tally()
        self._bundle = bundle
        self._sessions = sessions
        self._shadow = shadow
        self._floats = floats
        self._activations = record.by_value()
        self._weight_bits = record.weight_bits
        self._works = make_stages(bundle.graph, record)
        head = bundle.graph.subgraphs[-1]
        self._head = head.ops
        self._needed = needed_later(self._works, head.ops)
        self._expected: dict[tuple[str, Part], float] = {}
        self._rules: dict[int, Rule] = {}

    def run_prompt(
        self, tokens: NDArray[np.int32], cache: KVCache, logit_rows: int
    ) -> NDArray[np.float32]:
        """Run tokens behind what `cache` holds; see `edge.pair.PromptProgram.run_prompt`."""
        cache.reserve(len(tokens))
        chunks = self._chunks(tokens, cache, logit_rows)
        jobs = chunk_jobs([work.stage for work in self._works], len(chunks), self._seconds)
        actions = [action for chunk in chunks for action in self._actions(chunk)]
        self.timeline = run(jobs, actions, self._rule(jobs, len(chunks)))
        self._learn(self.timeline)
        cache.advance(len(tokens))
        logits = [self._logits(chunk.step) for chunk in chunks if chunk.step.logit_rows]
        return np.concatenate(logits or [np.empty((0, self._bundle.graph.vocabulary), np.float32)])

    def _chunks(self, tokens: NDArray[np.int32], cache: KVCache, logit_rows: int) -> list[Chunk]:
        """Chunks of `rows` tokens, each at its position in one cache; the last may be shorter."""
        return [
            Chunk(Step(c.tokens, len(c.tokens), c.logit_rows, cache.at(cache.length + c.first), {}))
            for c in cut(tokens, self.rows, logit_rows)
        ]

    # Scheduling.

    def _seconds(self, chunk: int, stage: Stage, part: Part) -> float:
        del chunk
        return self._expected.get((stage.name, part), _FIRST_GUESS_S[part.processor])

    def _rule(self, jobs: tuple[Job, ...], chunks: int) -> Rule:
        """The best rule for this many chunks by the times of the first prompt that had them."""
        if self.in_order or chunks == 1:
            return IN_ORDER
        if not self._expected:
            return best_rule(jobs)
        if chunks not in self._rules:
            self._rules[chunks] = best_rule(jobs)
        return self._rules[chunks]

    def _learn(self, timeline: Timeline) -> None:
        """Expect of every stage the mean time that it took."""
        times: dict[tuple[str, Part], list[float]] = {}
        for span in timeline.spans:
            job = timeline.jobs[span.place]
            times.setdefault((job.stage, job.part), []).append(span.seconds)
        self._expected = {key: sum(values) / len(values) for key, values in times.items()}

    def _actions(self, chunk: Chunk) -> list[Action]:
        """What the jobs of a chunk do, in the order of its stages and their parts."""
        actions: list[Action] = []
        for work, needed in zip(self._works, self._needed, strict=True):
            if isinstance(work, PieceWork):
                actions.append(partial(self._infer, work.piece, chunk))
                if OUTLIERS in work.stage.parts:
                    actions.append(partial(self._restore, work.piece, chunk))
            else:
                actions.append(partial(self._float, work, needed, chunk))
        return actions

    # Jobs.

    def _infer(self, piece: Piece, chunk: Chunk) -> None:
        session = self._sessions[piece.name]
        made = session.run(list(piece.outputs), {n: chunk.given[n] for n in piece.inputs})
        chunk.made.update(zip(piece.outputs, made, strict=True))

    def _restore(self, piece: Piece, chunk: Chunk) -> None:
        """The outliers' part of the piece's outputs, beside the NPU."""
        for op in piece.ops:
            if isinstance(op, Linear) and len(chunk.found[op.x].cut):
                found = chunk.found[op.x]
                columns = self._shadow.columns(op.weight, found.used[0])
                made = self._floats.products(found, columns, chunk.step.count)
                chunk.restored[op.out] = made
                self.tally.outliers += len(found.cut) * made.shape[1]

    def _float(self, work: FloatWork, needed: frozenset[str], chunk: Chunk) -> None:
        step = chunk.step
        if work.after is not None:
            self._take(work.after, chunk)
        if work.attend is not None:
            step.values[work.attend.out] = self._floats.attend(work.attend, step)
        for op in work.ops:
            step.values[op.out] = self._floats.run(op, step)
        if work.append is not None:
            self._floats.append(work.append, step)
        if work.before is not None:
            self._give(work.before, chunk)
        for name in step.values.keys() - needed:
            del step.values[name]

    def _give(self, piece: Piece, chunk: Chunk) -> None:
        """Codes of a piece's inputs, and what is outside of their ranges; padding is zeros."""
        for name in piece.inputs:
            activation = self._activations[name]
            x, factors = chunk.step.values[name], self._shadow.factors(name)
            codes, chunk.found[name] = self._floats.split(activation, x, factors)
            shape = self.rows, padded_width(codes.shape[1], self._weight_bits)
            pad = [(0, whole - part) for whole, part in zip(shape, codes.shape, strict=True)]
            padded = codes.shape != shape
            chunk.given[name] = (
                np.pad(codes, pad, constant_values=activation.zero) if padded else codes
            )

    def _take(self, piece: Piece, chunk: Chunk) -> None:
        """Values of a piece's outputs, with outliers and biases."""
        for op in piece.ops:
            if op.out in piece.outputs:
                chunk.step.values[op.out] = self._floats.join(
                    Made(
                        self._activations[op.out],
                        chunk.made.pop(op.out)[: chunk.step.count],
                        self._shadow.factors(op.out),
                        chunk.restored.pop(op.out, None),
                        op.bias if isinstance(op, Linear) else None,
                    )
                )
            if isinstance(op, Linear):
                self.tally.npu += self.rows * math.prod(self._shape(op))

    def _shape(self, op: Linear) -> tuple[int, ...]:
        return self._bundle.graph.tensor(op.weight).shape

    def _logits(self, step: Step) -> Values:
        for op in self._head:
            step.values[op.out] = self._floats.run(op, step)
        return step.values[self._bundle.graph.last.out]
