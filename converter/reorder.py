"""Groups that are out of order along the rows (act-order), put in order where that is exact.

GPTQ with `desc_act` gives weights to groups in the order of their inputs' activations, while a
bundle's groups are neighbours. The columns of a projection can be sorted by group if whatever makes
its inputs makes them in that order too. So it is for `down`, whose inputs are products of a row of
`gate` and one of `up`; the residual stream and the heads of attention have one order for several
readers.
"""

from __future__ import annotations

from dataclasses import replace

from converter.fold import Fold, Reorder, combine
from converter.uses import Uses
from converter.weights import Weights
from edge.graph import Gate


def in_order(weights: Weights) -> Weights:
    """The same model, with the channels between `gate`, `up` and `down` in the order of groups."""
    uses, stored = Uses(weights.model.graph), weights.stored()
    folds: dict[str, Fold] = {}
    for op in uses.graph.ops():
        if not isinstance(op, Gate):
            continue
        makers = [uses.only_source(value) for value in (op.gate, op.up)]
        readers = uses.projections(op.out)
        how = stored.get(readers[0].weight) if len(readers) == 1 else None
        if how is None or how.order is None or None in makers:
            continue
        turn = Reorder(how.order)
        rows = (name for maker in makers if maker is not None for name in maker.weights())
        folds |= dict.fromkeys(rows, Fold(left=(turn,)))
        folds[readers[0].weight] = Fold(right=(turn,))
    return replace(weights, folds=combine(weights.folds, folds)) if folds else weights
