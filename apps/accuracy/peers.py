"""llama.cpp's formats on the same checkpoint: its files' weights in our float interpreter.

llama.cpp quantizes, the gguf package decodes, and the reference interpreter runs what comes out. So
both sides' activations are exact, and what is compared is the weights alone. llama.cpp gets an
importance matrix of the samples that our own conversions calibrate on.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apps.accuracy.measure import Exact, Row, run_all
from apps.bench.gguf_file import (
    ARCHITECTURES,
    PACKAGE_FORMATS,
    gguf_name,
    interleave,
    read_summary,
    require_gguf,
    write_gguf,
)
from apps.bench.llamacpp_side import FILE_TYPES
from apps.bench.peer import start_side
from apps.bench.process import Child
from converter.calibrate import FloatTensors, Walk
from converter.models.builder import Model
from converter.samples import Samples
from converter.weights import Weights
from edge.errors import LutraError, MissingDependency, UnknownFormat
from edge.formats import F32
from edge.graph import Linear
from edge.planes import StoredTensor
from edge.reference import Values
from edge.watch import Watcher

# llama.cpp makes FILE_TYPES in its own mixtures; the gguf package PACKAGE_FORMATS, every matrix in
# the one format.
FORMATS = tuple(dict.fromkeys((*PACKAGE_FORMATS, *FILE_TYPES)))


class PeerTensors:
    """A GGUF file's tensors in float32, under our names and in our order of rows."""

    def __init__(self, path: Path, model: Model, interleaved: bool) -> None:
        from gguf import GGUFReader

        self._found = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
        self._model = model
        self._interleaved = interleaved

    def dense(self, name: str) -> Values:
        from gguf.quants import dequantize

        if name in self._model.constants:
            return self._model.constants[name]
        tensor = self._found[gguf_name(name)]
        shape = self._model.graph.tensor(name).shape
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        if self._interleaved and name.split(".")[2:3] in (["q"], ["k"]):
            values = restore(values, self._model.graph.caches[0].head_dim)
        return values

    def stored(self, name: str) -> StoredTensor:
        values = self.dense(name)
        return StoredTensor(name, F32, values.shape, {"values": values})


def restore(rows: Values, head_dim: int) -> Values:
    """Undo `interleave`."""
    order = interleave(np.arange(len(rows), dtype=np.float32)[:, None], head_dim)[:, 0]
    restored = np.empty_like(rows)
    restored[order.astype(np.intp)] = rows
    return restored


@dataclass(frozen=True)
class Peers:
    """Where llama.cpp's files are made, of what, and by which Python (None: the package)."""

    source: Path
    folder: Path
    model: Model
    model_type: str
    python: str | None
    importance: Mapping[str, list[float]]

    def rows(self, forms: Sequence[str], exact: Exact, watcher: Watcher) -> Iterator[Row]:
        """A row for each format; one that llama.cpp refuses is noted and left out.

        Raises UnknownFormat, and MissingDependency without gguf or, for most formats, llama.cpp.
        """
        require_gguf()
        for form in forms:
            if form not in FORMATS:
                raise UnknownFormat(f"GGUF format {form!r}", f"use one of {', '.join(FORMATS)}")
            if self.python is None and form not in PACKAGE_FORMATS:
                raise MissingDependency(
                    f"llama.cpp itself makes {form}",
                    "add --peer-python with a Python that has llama_cpp, or leave it out",
                )
        base = self.folder / "peer-base.gguf"
        write_gguf(self.source, base, "F16")
        with contextlib.ExitStack() as stack:
            side: Child | None = None
            for form in forms:
                path = self.folder / f"peer-{form}.gguf"
                if self.python is not None and form in FILE_TYPES:
                    side = side or stack.enter_context(start_side(self.python))
                    if not self._quantize(side, base, path, form, watcher):
                        continue
                else:
                    write_gguf(self.source, path, form)
                yield self._row(form, path, exact)

    def _row(self, form: str, path: Path, exact: Exact) -> Row:
        summary = read_summary(path)
        tensors = PeerTensors(path, self.model, ARCHITECTURES[self.model_type].interleaved)
        score = exact.score(run_all(self.model.graph, tensors, exact.samples))
        inside = Counter(summary.formats).most_common()
        parts = ", ".join(f"{count} {name}" for name, count in inside)
        bits = 8 * summary.tensor_bytes / self.model.graph.parameter_count
        return Row(f"llama.cpp {form}", parts, "ref", summary.tensor_bytes, bits, score, peer=True)

    def _quantize(self, side: Child, base: Path, path: Path, form: str, watcher: Watcher) -> bool:
        """Let llama.cpp make a file in its own mixture of formats; False where it refuses."""
        try:
            side.ask(
                "quantize",
                source=str(base),
                out=str(path),
                form=form,
                threads=2,
                pure=False,
                importance=dict(self.importance),
            )
        except MissingDependency:
            raise
        except LutraError as error:
            watcher.note(f"llama.cpp makes no {form} of this model: {error.what}")
            return False
        return True


def find_importance(model: Model, weights: Weights, samples: Samples) -> dict[str, list[float]]:
    """Mean square of every input of every projection, under llama.cpp's names."""
    found = {}
    for op in (walk := Walk(model.graph, FloatTensors(weights), samples.sequences)):
        if isinstance(op, Linear):
            squares = np.square(walk.value(op.x), dtype=np.float64).mean(axis=0)
            found[gguf_name(op.weight)] = squares.tolist()
    return found
