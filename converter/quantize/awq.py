"""Activation-aware scaling: channels of large activations get finer steps, at the others' cost.

AWQ (arXiv 2306.00978, section 3.2): the columns of a layer are multiplied by s = energy^(alpha / 2)
and what makes their inputs is divided by it. Here every alpha is tried with the quantizer that will
be used, on the layer's own curvature, and none is taken unless it is better than no scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from converter.quantize.gptq import GPTQ_ALONE, Curvature, Matrix, damped, quantize
from converter.quantize.grid import Floats
from converter.quantize.rtn import fit_tensor_scale, quantize_rows
from edge.formats import Format
from edge.planes import dequantize

# Shares tried. Over three quarters the other channels always lost more.
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)

# No channel is scaled by more than this, either way: norms stay in a range where float32 is exact.
MOST = 64.0

# Rows of a matrix that the search goes by.
_ROWS = 256


@dataclass(frozen=True)
class Layer:
    """A matrix [out, in] that reads the inputs to be scaled, and the format that it will have."""

    form: Format
    rows: Floats


class Rounding(Protocol):
    """A quantizer, as the search tries it."""

    def __call__(self, form: Format, rows: Floats, hessian: Matrix) -> Floats:
        """What rows [out, in] become, for inputs of this mean(x x^T)."""
        ...


def to_nearest(form: Format, rows: Floats, hessian: Matrix) -> Floats:
    """Round to nearest, whatever the inputs are."""
    del hessian
    scale = fit_tensor_scale(lambda: [rows]) if form.granularity == "tensor" else None
    return dequantize(form, quantize_rows(form, rows, scale))


def by_gptq(form: Format, rows: Floats, hessian: Matrix) -> Floats:
    """GPTQ without its last rounds, which cost most and change little in what is best."""
    grid, codes = quantize(form, rows, Curvature(hessian, GPTQ_ALONE))
    return grid.decode(codes)


def search_scales(
    layers: Sequence[Layer], hessian: Matrix, sources: NDArray[np.intp], rounding: Rounding
) -> Matrix | None:
    """Scales of the channels behind the inputs of layers that all read the same; None if none help.

    `hessian` is mean(x x^T), [in, in]; `sources` [in] says which channel each input comes from, and
    so which inputs have a scale in common. Raises BadWeights where inputs overflow.
    """
    taken = [Layer(layer.form, layer.rows[:: max(len(layer.rows) // _ROWS, 1)]) for layer in layers]
    energy = np.diag(damped(hessian, GPTQ_ALONE.damp))
    shared = np.bincount(sources, energy) / np.bincount(sources)
    best, least = None, np.inf
    for alpha in ALPHAS:
        scales = _scales(shared, alpha)
        error = _error(taken, hessian, scales[sources], rounding)
        if error < least:
            best, least = (scales if alpha else None), error
    return best


def _scales(energy: Matrix, alpha: float) -> Matrix:
    """energy^(alpha / 2), about 1."""
    logs = alpha / 2 * np.log(energy)
    scales: Matrix = np.exp(np.clip(logs - logs.mean(), -math.log(MOST), math.log(MOST)))
    return scales


def _error(layers: Sequence[Layer], hessian: Matrix, scales: Matrix, rounding: Rounding) -> float:
    """Output error of all layers, each rounded with its columns scaled, inputs divided."""
    divided = hessian / np.outer(scales, scales)
    error = 0.0
    for layer in layers:
        rows = (layer.rows * scales).astype(np.float32)
        lost = (rounding(layer.form, rows, divided) - rows).astype(np.float64)
        error += float(((lost @ divided) * lost).sum())
    return error
