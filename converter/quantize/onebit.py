"""The two values of a group of 1 bit that are closest to its weights, found exactly.

With one value for each sign, minus and plus half a scale, it is the mean magnitude (XNOR-Net,
arXiv 1603.05279, section 3.1, here weighted); with any two, a cut through the weights in their
order, the mean of either side. Weights are laid out as [rows, groups, size]; those that fill a
row's last group have an energy of 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from converter.quantize import scales as stored
from edge.formats import Format
from edge.planes import stored_zeros, zeros_of

Floats = NDArray[np.float32]


def fit(form: Format, grouped: Floats, energy: Floats) -> tuple[Floats, Floats]:
    """Scales and zeros [rows, groups] of the least error, weighted by energy [1, groups, size].

    Both are as they will be stored. Raises BadWeights where a scale is out of range.
    """
    if form.asymmetric:
        return _any_two(form, grouped, energy)
    mean = _ratio((np.abs(grouped) * energy).sum(axis=2, dtype=np.float64), energy.sum(axis=2))
    return stored.nearest(form, 2 * mean), np.full(mean.shape, form.zero, np.float32)


def _any_two(form: Format, grouped: Floats, energy: Floats) -> tuple[Floats, Floats]:
    """Of every cut, the zero that its means have, and the best scale for that zero.

    With sums h of energies and a of weights on either side, and a zero z, the best scale is
    ((1 - z) a1 - z a0) / ((1 - z)^2 h1 + z^2 h0), and takes that times its numerator off the error.
    """
    order = np.argsort(-grouped, axis=2, kind="stable")
    weights = np.take_along_axis(grouped, order, axis=2).astype(np.float64)
    shares = np.take_along_axis(np.broadcast_to(energy, grouped.shape), order, axis=2)
    h1, a1 = np.cumsum(shares, axis=2, dtype=np.float64), np.cumsum(shares * weights, axis=2)
    h0, a0 = h1[:, :, -1:] - h1, a1[:, :, -1:] - a1
    high, low = _ratio(a1, h1), _ratio(a0, h0)
    zeros = zeros_of(form, stored_zeros(form, _ratio(-low, high - low))).astype(np.float64)
    above = (1 - zeros) * a1 - zeros * a0
    below = (1 - zeros) ** 2 * h1 + zeros**2 * h0
    best = np.argmax(above * _ratio(above, below), axis=2)[:, :, None]
    scales, chosen = (
        np.take_along_axis(values, best, axis=2)[:, :, 0]
        for values in (_ratio(above, below), zeros)
    )
    return stored.nearest(form, scales), chosen.astype(np.float32)


def _ratio(above: NDArray[np.float64], below: NDArray[np.floating]) -> NDArray[np.float64]:
    """above / below, and 0 where nothing is below."""
    return np.where(below == 0, 0, above / np.where(below == 0, 1, below))
