"""Weights of a model as the graph wants them: checked, cut out of fused tensors, transformed.

Read a block of rows at a time, so that memory stays bounded whatever the model's size.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from converter.fold import Folds, Reorder
from converter.models.builder import Model, Origin
from converter.quantize.rtn import Floats
from converter.sources.source import Source, Stored
from edge.errors import BadWeights, UnsupportedMath, WrongShape
from edge.planes import TILE, Quantized

# 4 Mi weights a block: 16 MB in float32, and some 100 MB with everything made on the way to codes.
BLOCK_WEIGHTS = 1 << 22


@dataclass(frozen=True)
class Weights:
    """The tensors of `model` in `checkpoint`, with `folds` multiplied into them."""

    model: Model
    checkpoint: Source
    folds: Folds = field(default_factory=dict)

    def check(self) -> None:
        """Compare names and shapes with what the config implies, before any work.

        Raises MissingTensor, WrongShape, or UnsupportedMath for tensors that would be left over and
        for those that the source cannot read.
        """
        for origin in self.model.origins.values():
            found = self.checkpoint.shape(origin.name)
            if found != origin.shape:
                raise WrongShape(
                    f"{self.checkpoint.shard_of(origin.name)}: tensor {origin.name} is "
                    f"{list(found)}, the config implies {list(origin.shape)}",
                    "check that config.json and the weights belong together",
                )
            if self.checkpoint.stored(origin.name) is None:
                raise UnsupportedMath(
                    f"{self.checkpoint.shard_of(origin.name)}: tensor {origin.name} is "
                    f"{self.checkpoint.dtype(origin.name)}, need floats",
                    "it is quantized already: give the checkpoint that it was made from",
                )
        self._refuse_leftovers()

    def blocks(self, name: str) -> Iterator[tuple[int, Floats]]:
        """A tensor's rows in order, as (first row, float32 block); a vector is one block.

        Blocks are whole tiles. A tensor whose rows are mixed by a fold is in memory whole. Raises
        BadWeights on NaN or infinity.
        """
        fold = self.folds.get(name)
        if fold is None:
            yield from self._plain(name)
        elif fold.left:
            whole = fold.apply(np.concatenate([block for _, block in self._plain(name)]))
            for first, last in _spans(whole.shape):
                yield first, whole[first:last]
        else:
            for first, block in self._plain(name):
                yield first, fold.apply(block)

    def _plain(self, name: str) -> Iterator[tuple[int, Floats]]:
        """Blocks of a tensor before it is folded."""
        if name in self.model.constants:
            yield 0, self.model.constants[name]
            return
        origin, shape = self.model.origins[name], self.model.graph.tensor(name).shape
        scale = self._master_scale(name) if origin.transform == "ternarize" else 1.0
        for first, last in _spans(shape):
            yield first, _transform(origin, self._read(origin, first, last), scale)

    def stored(self) -> dict[str, Stored]:
        """How the source stores each matrix that the graph takes as it is."""
        found = {
            tensor.name: self.checkpoint.stored(self.model.origins[tensor.name].name)
            for tensor in self.model.graph.tensors
            if tensor.name in self.model.origins and len(tensor.shape) == 2
        }
        return {
            name: stored
            for name, stored in found.items()
            if stored is not None and self.model.origins[name].transform == "as_is"
        }

    def codes(self, name: str) -> Iterator[tuple[int, Quantized]]:
        """A tensor's own integers in the source, as (first row, block of whole tiles).

        For tensors stored as `codes`, which folds at most reorder: rows here, columns in the
        source. Raises BadWeights on a scale of NaN or infinity.
        """
        origin, shape = self.model.origins[name], self.model.graph.tensor(name).shape
        fold = self.folds.get(name)
        if fold is None or not fold.left:
            for first, last in _spans(shape):
                yield first, self._read_codes(origin, first, last)
            return
        (turn,) = fold.left
        assert isinstance(turn, Reorder)
        whole = self._read_codes(origin, 0, shape[0])
        for first, last in _spans(shape):
            rows = turn.order[first:last]
            zeros = None if whole.zeros is None else whole.zeros[rows]
            yield first, Quantized(whole.codes[rows], whole.scales[rows], zeros)

    def _read_codes(self, origin: Origin, first: int, last: int) -> Quantized:
        offset = origin.first_row
        block = self.checkpoint.codes(origin.name, offset + first, offset + last)
        if not np.isfinite(block.scales).all():
            raise BadWeights(
                f"{self.checkpoint.shard_of(origin.name)}: tensor {origin.name} has a scale "
                f"that is no number in rows {offset + first} to {offset + last}",
                "the checkpoint is damaged: get another copy",
            )
        return block

    def _read(self, origin: Origin, first: int, last: int) -> Floats:
        offset = origin.first_row
        rows = self.checkpoint.rows(origin.name, offset + first, offset + last)
        if not np.isfinite(rows).all():
            raise BadWeights(
                f"{self.checkpoint.shard_of(origin.name)}: tensor {origin.name} "
                f"has {_first_bad(rows)} in row {offset + first + _bad_row(rows)}",
                "the checkpoint is damaged or diverged in training: get another copy",
            )
        return rows

    def _master_scale(self, name: str) -> float:
        """Mean magnitude of a tensor, the scale that BitNet ternarizes its master weights by."""
        origin, shape = self.model.origins[name], self.model.graph.tensor(name).shape
        total, count = 0.0, 0
        for first, last in _spans(shape):
            block = self._read(origin, first, last)
            total += float(np.abs(block).sum(dtype=np.float64))
            count += block.size
        return max(total / count, 1e-5)

    def _refuse_leftovers(self) -> None:
        used = {origin.name for origin in self.model.origins.values()}
        for name in sorted(self.checkpoint.tensor_names - used):
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.model.ignored):
                raise UnsupportedMath(
                    f"{self.checkpoint.shard_of(name)}: tensor {name} has no place in the model "
                    "that config.json describes",
                    "config and weights do not belong together, or the math is not implemented",
                )


def _spans(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Ranges of rows that cover a tensor, each of whole tiles and about BLOCK_WEIGHTS weights."""
    if len(shape) == 1:
        yield 0, shape[0]
        return
    step = max(BLOCK_WEIGHTS // shape[1] // TILE, 1) * TILE
    for first in range(0, shape[0], step):
        yield first, min(first + step, shape[0])


def _transform(origin: Origin, rows: Floats, master_scale: float) -> Floats:
    match origin.transform:
        case "plus_one":
            return rows + np.float32(1)
        case "ternarize":
            scale = np.float32(master_scale)
            return np.clip(np.rint(rows / scale), -1, 1) * scale
        case _:
            return rows


def _bad_row(rows: Floats) -> int:
    bad: NDArray[np.intp] = np.argwhere(~np.isfinite(rows))
    return int(bad[0][0])


def _first_bad(rows: Floats) -> str:
    return "NaN" if np.isnan(rows[_bad_row(rows)]).any() else "infinity"
