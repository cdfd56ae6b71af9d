"""How far predictions are from others'."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def divergence(exact: NDArray[np.float32], made: NDArray[np.float32]) -> float:
    """Mean KL divergence of `made` from `exact`, in nats a token."""
    p, q = log_softmax(exact), log_softmax(made)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def perplexity(logits: NDArray[np.float32], tokens: NDArray[np.integer]) -> float:
    """Of the tokens but the first, by the logits of those before."""
    rows = np.arange(len(tokens) - 1)
    return float(np.exp(-log_softmax(logits)[rows, tokens[1:]].mean()))
