"""A bundle's prefill and decoding with whole layers on an NPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle
from edge.errors import PromptTooLong
from edge.graph import Rope, Subgraph
from edge.jobs import CPU, NPU, Job, Part
from edge.kvcache import KVCache
from edge.npu import Codes, NpuRecord
from edge.reference import Step, Values, visible
from edge.schedule import Span, Timeline
from npu.htp.chunks import cut
from npu.htp.coded import CodedCache
from npu.htp.floats import Floats
from npu.htp.graphs import make_layers
from npu.htp.layer import (
    COSINES,
    MASK,
    PAST_KEYS,
    PAST_VALUES,
    SEEN,
    SINES,
    UNSEEN,
    Layer,
    rope_tables,
)
from npu.htp.placed import Placed

if TYPE_CHECKING:
    import onnxruntime


class LayersProgram:
    """All layers on an NPU, the embedding and the head on the CPU. See `edge.backend.WholeProgram`.

    `sessions` are the graphs' by the names of `npu.htp.graphs.make_layers`: all, or those for
    prompts. `timeline` has the times of the last prompt; one processor works at a time.
    """

    def __init__(
        self,
        bundle: Bundle,
        record: NpuRecord,
        placed: Placed,
        sessions: Mapping[str, onnxruntime.InferenceSession],
        floats: Floats,
    ) -> None:
        self.place = f"{placed.text} with {floats.place} beside it"
        self.emulated = placed.emulated
        self.target = placed.target
        self.timeline: Timeline | None = None
        self.positions = record.positions
        self._graph = bundle.graph
        self._floats = floats
        self._turning = {
            op.frequencies: bundle.tensor(op.frequencies).dequantized()
            for op in bundle.graph.ops()
            if isinstance(op, Rope)
        }
        self._activations = record.by_value()
        layers = make_layers(bundle.graph, record.rows, record.positions)
        self._layers: dict[int, list[tuple[onnxruntime.InferenceSession, Layer]]] = {}
        for name, layer in layers.items():
            if name in sessions:
                self._layers.setdefault(layer.rows, []).append((sessions[name], layer))
        self.chunks = tuple(sorted(self._layers))
        self._coded = CodedCache(
            [layer for _, layer in self._layers[record.rows]], self._activations
        )

    def run_prompt(
        self, tokens: NDArray[np.int32], cache: KVCache, logit_rows: int
    ) -> NDArray[np.float32]:
        """Run tokens behind what `cache` holds; see `edge.backend.PromptProgram.run_prompt`."""
        self._require(cache, len(tokens))
        cache.reserve(len(tokens))
        made, rows, laps = [], self.chunks[-1], Laps()
        for number, part in enumerate(cut(tokens, rows, logit_rows)):
            count, laps.chunk = len(part.tokens), number
            padded = np.pad(part.tokens, (0, rows - count))
            made.append(self._run(Step(padded, count, part.logit_rows, cache, {}), laps))
        self.timeline = laps.timeline()
        return np.concatenate(made)

    def run(self, tokens: NDArray[np.int32], count: int, cache: KVCache, logit_rows: int) -> Values:
        """Run a chunk; see `edge.backend.Program.run`. Raises PromptTooLong."""
        self._require(cache, count)
        cache.reserve(count)
        return self._run(Step(tokens, count, logit_rows, cache, {}), Laps())

    def _run(self, step: Step, laps: Laps) -> Values:
        with laps.of(CPU, "embed"):
            self._coded.follow(step.cache)
            self._run_floats(self._graph.subgraphs[0], step)
        self._run_layers(step, laps)
        step.cache.advance(step.count)
        self._coded.advanced(step.cache)
        if not step.logit_rows:
            return np.empty((0, self._graph.vocabulary), np.float32)
        with laps.of(CPU, "head"):
            self._run_floats(self._graph.subgraphs[-1], step)
        return step.values[self._graph.last.out]

    def _run_floats(self, subgraph: Subgraph, step: Step) -> None:
        for op in subgraph.ops:
            step.values[op.out] = self._floats.run(op, step)

    def _require(self, cache: KVCache, count: int) -> None:
        if cache.length + count > self.positions:
            raise PromptTooLong(
                f"{cache.length + count} tokens, the NPU's layers hold {self.positions}",
                "shorten the prompt, or convert again with a larger --npu-positions",
            )

    def _run_layers(self, step: Step, laps: Laps) -> None:
        layers = self._layers[len(step.tokens)]
        first, last = (layers[end][1].piece for end in (0, -1))
        stream = self._activations[first.inputs[0]].encode(step.values[first.inputs[0]])
        places = _Places(step, self._turning)
        for index, (session, layer) in enumerate(layers):
            keys, values = self._coded.codes(index)
            given = {layer.piece.inputs[0]: stream, PAST_KEYS: keys, PAST_VALUES: values}
            given |= places.of(layer)
            with laps.of(NPU, f"layers.{index}"):
                stream, *made = session.run([layer.piece.outputs[0], *layer.kept], given)
            with laps.of(CPU, f"layers.{index}.cache"):
                self._coded.append(index, made, step.count, step.cache)
        step.values[last.outputs[0]] = self._activations[last.outputs[0]].decode(stream)


class Laps:
    """What ran when, one thing after the other; `chunk` is the one that is running."""

    def __init__(self) -> None:
        self.chunk = 0
        self._began = time.perf_counter()
        self._jobs: list[Job] = []
        self._spans: list[Span] = []

    @contextmanager
    def of(self, processor: str, stage: str) -> Iterator[None]:
        """Times what runs within it. Nothing is expected of it beforehand."""
        start, place = time.perf_counter(), len(self._jobs)
        yield
        end = time.perf_counter()
        after = (place - 1,) if place else ()
        self._jobs.append(Job(self.chunk, stage, Part(processor), 0.0, after))
        self._spans.append(Span(place, start - self._began, end - self._began))

    def timeline(self) -> Timeline:
        return Timeline(tuple(self._jobs), tuple(self._spans))


class _Places:
    """What layers are given of a chunk's place in the text, made once for all that share it."""

    def __init__(self, step: Step, frequencies: Mapping[str, Values]) -> None:
        self._step = step
        self._frequencies = frequencies
        self._masks: dict[int | None, Codes] = {}
        self._tables: dict[tuple[str, float, int], tuple[Codes, Codes]] = {}

    def of(self, layer: Layer) -> dict[str, Codes]:
        """The mask, and cosines and sines where the layer turns anything."""
        window, rope = layer.attention.window, layer.rope
        if window not in self._masks:
            self._masks[window] = make_mask(self._step, layer.positions, window)
        given = {MASK: self._masks[window]}
        if rope is not None:
            given |= zip((COSINES, SINES), self._tables_of(rope), strict=True)
        return given

    def _tables_of(self, rope: Rope) -> tuple[Codes, Codes]:
        key = rope.frequencies, rope.scale, rope.head_dim
        if key not in self._tables:
            frequencies = self._frequencies[rope.frequencies]
            self._tables[key] = rope_tables(rope, frequencies, self._step.positions)
        return self._tables[key]


def make_mask(step: Step, positions: int, window: int | None) -> Codes:
    """What each row does not see, of the cache's places and of the chunk, [1, 1, rows, seen].

    Rows of padding see what the last valid row sees.
    """
    rows, past = len(step.tokens), step.cache.length
    seen = np.zeros((rows, positions + rows), np.bool_)
    visible_now = visible(step, past + step.count, window)
    seen[:, :past] = visible_now[:, :past]
    seen[:, positions : positions + step.count] = visible_now[:, past:]
    return np.where(seen, SEEN, UNSEEN)[None, None]
