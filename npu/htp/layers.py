"""A bundle's prefill and decoding with whole layers on an NPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge.bundle import Bundle
from edge.errors import PromptTooLong
from edge.graph import Rope, Subgraph
from edge.kvcache import KVCache
from edge.npu import Codes, NpuRecord
from edge.reference import Step, Values, visible
from edge.schedule import Timeline
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

    `sessions` are the graphs' by the names of `npu.htp.graphs.make_layers`.
    """

    # One processor works at a time: there is no schedule to show.
    timeline: Timeline | None = None

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
        self.chunks = 1, record.rows
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
        self._layers = {
            rows: [(sessions[name], layer) for name, layer in layers.items() if layer.rows == rows]
            for rows in self.chunks
        }
        self._coded = CodedCache([layer for _, layer in self._layers[1]], self._activations)

    def run_prompt(
        self, tokens: NDArray[np.int32], cache: KVCache, logit_rows: int
    ) -> NDArray[np.float32]:
        """Run tokens behind what `cache` holds; see `edge.backend.PromptProgram.run_prompt`."""
        self._require(cache, len(tokens))
        cache.reserve(len(tokens))
        made, rows = [], self.chunks[-1]
        for part in cut(tokens, rows, logit_rows):
            count = len(part.tokens)
            padded = np.pad(part.tokens, (0, rows - count))
            made.append(self.run(padded, count, cache, part.logit_rows))
        return np.concatenate(made)

    def run(self, tokens: NDArray[np.int32], count: int, cache: KVCache, logit_rows: int) -> Values:
        """Run a chunk; see `edge.backend.Program.run`. Raises PromptTooLong."""
        self._require(cache, count)
        self._coded.follow(cache)
        step = Step(tokens, count, logit_rows, cache, {})
        self._run_floats(self._graph.subgraphs[0], step)
        self._run_layers(step)
        cache.advance(count)
        self._coded.advanced(cache)
        if not logit_rows:
            return np.empty((0, self._graph.vocabulary), np.float32)
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

    def _run_layers(self, step: Step) -> None:
        layers = self._layers[len(step.tokens)]
        first, last = (layers[end][1].piece for end in (0, -1))
        stream = self._activations[first.inputs[0]].encode(step.values[first.inputs[0]])
        places = _Places(step, self._turning)
        for index, (session, layer) in enumerate(layers):
            keys, values = self._coded.codes(index)
            given = {layer.piece.inputs[0]: stream, PAST_KEYS: keys, PAST_VALUES: values}
            stream, *made = session.run(
                [layer.piece.outputs[0], *layer.kept], given | places.of(layer)
            )
            self._coded.append(index, made, step.count, step.cache)
        step.values[last.outputs[0]] = self._activations[last.outputs[0]].decode(stream)


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
