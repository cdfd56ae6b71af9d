"""Hadamard rotation folded into a model's weights, which leaves its graph and its text as they are.

QuaRot (arXiv 2404.00456) and SpinQuant (2405.16406): the residual stream is turned as a whole, and
the values of each attention head. RMS norms do not see the turn once their weights have moved into
the projections behind them. Rotations inside a layer, of the input of `down` or of keys behind
RoPE, would need ops that turn activations as the model runs; the graph has none, so they are left.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from converter.fold import Fold, Folds, Scale, combine
from converter.quantize.hadamard import Rotation
from converter.uses import Stream, Uses, find_stream, untied
from converter.weights import Weights
from edge.errors import UnsupportedMath
from edge.graph import Attention, Embed

SEED = 7


def rotate(weights: Weights, seed: int = SEED) -> Weights:
    """The same model in a turned basis. An embedding that is also the head is stored twice then.

    Raises UnsupportedMath where something on the residual stream does not fold.
    """
    if weights.checkpoint.quantized:
        raise UnsupportedMath(
            "a rotation mixes weights that are quantized already",
            "leave --rotate out, or give the checkpoint that it was made from",
        )
    model = untied(weights.model)
    plain = replace(weights, model=model)
    uses = Uses(model.graph)
    stream = find_stream(uses)
    turn = Rotation.draw(stream.width, seed)
    norms = {op.weight: _vector(plain, op.weight) for op in stream.readers}
    ones = {name: np.ones_like(values) for name, values in norms.items()}
    folds = combine(_turn_stream(uses, stream, turn, norms), _turn_heads(uses, seed))
    turned = replace(model, constants={**model.constants, **ones})
    return Weights(turned, weights.checkpoint, folds)


def _vector(weights: Weights, name: str) -> NDArray[np.float32]:
    ((_, values),) = weights.blocks(name)
    return values


def _turn_stream(
    uses: Uses, stream: Stream, turn: Rotation, norms: dict[str, NDArray[np.float32]]
) -> Folds:
    """What writes to the stream is turned, what reads it turned back, behind the norm's weights."""
    folds: dict[str, Fold] = {}
    for op in stream.writers:
        if isinstance(op, Embed):
            folds[op.table] = Fold(right=(turn,))
        else:
            folds |= dict.fromkeys(op.weights(), Fold(left=(turn,)))
    for norm in stream.readers:
        scale = Scale(norms[norm.weight].astype(np.float64))
        for op in uses.projections(norm.out):
            folds[op.weight] = Fold(right=(scale, turn))
    return folds


def _turn_heads(uses: Uses, seed: int) -> Folds:
    """Values of attention are turned a head, and the output projection turns them back.

    Only where the projections are next to the attention: a norm between them does not fold.
    """
    folds: dict[str, Fold] = {}
    for op in uses.graph.ops():
        if not isinstance(op, Attention):
            continue
        values, outputs = uses.only_source(op.value), uses.projections(op.out)
        if values is None or not outputs:
            continue
        turn = Rotation.draw(uses.graph.caches[op.cache].head_dim, seed)
        folds |= dict.fromkeys(values.weights(), Fold(left=(turn,)))
        folds |= {output.weight: Fold(right=(turn,)) for output in outputs}
    return folds
