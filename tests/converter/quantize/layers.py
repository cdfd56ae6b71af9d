"""Random layers with correlated inputs, as a model's are: a few directions hold most of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from converter.quantize.rtn import fit_tensor_scale, quantize_rows
from edge.formats import Format
from edge.planes import dequantize

Floats = NDArray[np.float32]


def make_layer(rows: int, width: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Weights [rows, width], normal, and inputs [4 * width, width] with a falling spectrum."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(rows, width)).astype(np.float32)
    turn, _ = np.linalg.qr(random.normal(size=(width, width)))
    spectrum = np.geomspace(1, 0.05, width)
    inputs = random.normal(size=(4 * width, width)) * spectrum @ turn
    return weights, inputs.astype(np.float32)


def hessian_of(inputs: Floats) -> NDArray[np.float64]:
    """Mean of x x^T."""
    wide = inputs.astype(np.float64)
    return wide.T @ wide / len(wide)


def output_error(weights: Floats, made: Floats, inputs: Floats) -> float:
    """RMS of the difference of outputs over the RMS of the outputs."""
    return float(np.linalg.norm(inputs @ (made - weights).T) / np.linalg.norm(inputs @ weights.T))


def nearest(form: Format, weights: Floats) -> Floats:
    """Weights rounded to nearest."""
    scale = fit_tensor_scale(lambda: [weights]) if form.granularity == "tensor" else None
    return dequantize(form, quantize_rows(form, weights, scale))
