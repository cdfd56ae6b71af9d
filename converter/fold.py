"""Changes of basis multiplied into weights: the model computes the same, and rounds better.

A fold is a row of factors on either side of a matrix [out, in]: those on its columns undo what was
done to its inputs, those on its rows change its outputs for whoever reads them next. Each factor
acts on the last axis of what it is applied to, so that one definition serves weights, biases and
norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Wide = NDArray[np.float64]


class Factor(Protocol):
    """A linear map on the last axis: x [..., width] becomes x M."""

    def apply(self, x: Wide) -> Wide: ...


@dataclass(frozen=True)
class Scale:
    """Every channel times a number of its own: `factors` [width]."""

    factors: Wide

    def apply(self, x: Wide) -> Wide:
        return x * self.factors


@dataclass(frozen=True)
class Reorder:
    """Channels in another order: channel i is what was channel `order[i]`."""

    order: NDArray[np.intp]

    def apply(self, x: Wide) -> Wide:
        return x[..., self.order]


@dataclass(frozen=True)
class Fold:
    """What a tensor is multiplied with: W becomes left^T W right; a vector v becomes v left."""

    left: tuple[Factor, ...] = ()
    right: tuple[Factor, ...] = ()

    def then(self, other: Fold) -> Fold:
        """This fold, and another after it."""
        return Fold(self.left + other.left, self.right + other.right)

    def apply(self, values: Floats) -> Floats:
        """A whole tensor, or rows of one where nothing is to be done on the left."""
        moved = all(isinstance(factor, Reorder) for factor in (*self.left, *self.right))
        wide: NDArray[Any] = values if moved else values.astype(np.float64)
        for factor in self.right:
            wide = factor.apply(wide)
        for factor in self.left:
            wide = factor.apply(wide.T).T  # of a vector, the one axis is the last either way
        return np.ascontiguousarray(wide, np.float32)


Folds = Mapping[str, Fold]


def combine(first: Folds, second: Folds) -> dict[str, Fold]:
    """Folds of tensors by name, one after the other."""
    names = dict.fromkeys((*first, *second))
    none = Fold()
    return {name: first.get(name, none).then(second.get(name, none)) for name in names}
