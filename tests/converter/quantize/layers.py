"""What quantizers are measured on: layers with correlated inputs, and a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edge
from converter.convert import convert
from converter.quantize.rtn import fit_tensor_scale, quantize_rows
from edge.formats import Format
from edge.planes import dequantize
from edge.sampler import Sampling

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


def divergence(source: Path, out: Path, *, texts: int = 1, **options: Any) -> float:
    """Mean KL divergence of a bundle's predictions from the float model's, over drawn tokens.

    From one text of 200 tokens to another, the ratio of two formats' varies by a tenth.
    """
    exact = convert(source, out / "exact", weights="f32", overwrite=True)
    convert(source, out / "made", overwrite=True, **options)
    model = edge.load(out / "exact", target="ref")
    made, start = edge.load(out / "made", target="ref"), [exact.tokenizer.bos_id or 0]
    found = []
    for seed in range(5, 5 + texts):
        drawn = model.stream(start, max_tokens=200, sampling=Sampling(seed=seed))
        tokens = [record.token for record in drawn]
        p, q = (_log_probabilities(one.logits(tokens)) for one in (model, made))
        found.append(float((np.exp(p) * (p - q)).sum(axis=1).mean()))
    return float(np.mean(found))


def _log_probabilities(logits: Floats) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
