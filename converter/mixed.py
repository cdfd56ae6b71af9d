"""Mixed precision measured on the model: how much each tensor's rounding changes what it predicts.

One tensor at a time is rounded, all others stay float, and the KL divergence of the predictions is
taken: at 2, 3 and 4 bits. At 8 it goes with the square of the weights' error, as it does where
errors are small; at 2 it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from converter.calibrate import FloatTensors, Walk
from converter.plan import Plan, PlannedTensor
from converter.quantize.allocate import Choice, allocate
from converter.quantize.grid import Floats
from converter.quantize.rtn import quantize_rows
from converter.samples import Samples
from converter.watch import Watcher
from converter.weights import Weights
from edge.errors import UsageError
from edge.formats import Format
from edge.graph import Graph
from edge.planes import dequantize

PROBED_BITS = (2, 3, 4)
SMALL_BITS = 8

# Rows that an error is estimated on.
_ROWS = 4096


@dataclass(frozen=True)
class Sensitivity:
    """KL divergence, in nats a token, from rounding one tensor, by its width in bits."""

    tensor: PlannedTensor
    kl: Mapping[int, float]


def measure(
    graph: Graph, weights: Weights, plan: Plan, samples: Samples, watcher: Watcher
) -> list[Sensitivity]:
    """Measure every tensor of the plan whose width is open, in three runs of the samples each."""
    tensors = FloatTensors(weights)
    exact = _log_probs(graph, tensors, samples)

    def divergence(name: str, form: Format, values: Floats) -> float:
        tensors.replace(name, _rounded(form, values))
        made = _log_probs(graph, tensors, samples)
        tensors.forget(name)
        watcher.advance(1)
        return max(float((np.exp(exact) * (exact - made)).sum(axis=1).mean()), 0.0)

    free = [p for p in plan.tensors if may_change(p)]
    watcher.start("sensitivity", len(PROBED_BITS) * len(free), "runs")
    found = []
    for planned in free:
        name, form = planned.tensor.name, planned.form
        values = tensors.dense(name)
        kl = {bits: divergence(name, at_bits(form, bits), values) for bits in PROBED_BITS}
        last = max(PROBED_BITS)
        part = values[:_ROWS]
        errors = [_error(at_bits(form, bits), part) for bits in (SMALL_BITS, last)]
        kl[SMALL_BITS] = kl[last] * (errors[0] / (errors[1] or 1.0)) ** 2
        found.append(Sensitivity(planned, kl))
    return found


def require_room(plan: Plan, budget: int) -> None:
    """Raises UsageError where even the smallest formats take more than a budget of bytes."""
    smallest = min((*PROBED_BITS, SMALL_BITS))
    least = sum(
        (replace(p, form=at_bits(p.form, smallest)) if may_change(p) else p).byte_count
        for p in plan.tensors
    )
    if budget < least:
        raise UsageError(
            f"a size of {budget} bytes for all weights, the smallest formats take {least}",
            "ask for a larger size, or larger groups",
        )


def mix(plan: Plan, found: list[Sensitivity], budget: int) -> Plan:
    """The plan with each measured tensor in the format that the budget of bytes is best spent on.

    Raises UsageError where the budget is too small.
    """
    choices = {each.tensor.tensor.name: _choices(each) for each in found}
    fixed = sum(p.byte_count for p in plan.tensors if p.tensor.name not in choices)
    chosen = allocate(choices, budget - fixed)
    return Plan(
        tuple(
            replace(p, form=chosen[p.tensor.name].form) if p.tensor.name in chosen else p
            for p in plan.tensors
        )
    )


def may_change(planned: PlannedTensor) -> bool:
    """Whether a tensor's width is open: integers that are not the source's own."""
    return planned.form.kind == "integer" and not planned.kept


def at_bits(form: Format, bits: int) -> Format:
    """The same format at another width."""
    return replace(form, bits=bits)


def _choices(each: Sensitivity) -> list[Choice]:
    forms = {bits: at_bits(each.tensor.form, bits) for bits in each.kl}
    return [
        Choice(forms[bits], replace(each.tensor, form=forms[bits]).byte_count, cost)
        for bits, cost in each.kl.items()
    ]


def _error(form: Format, rows: Floats) -> float:
    return float(np.linalg.norm(_rounded(form, rows) - rows))


def _rounded(form: Format, rows: Floats) -> Floats:
    return dequantize(form, quantize_rows(form, rows))


def _log_probs(graph: Graph, tensors: FloatTensors, samples: Samples) -> NDArray[np.float64]:
    walk = Walk(graph, tensors, samples.sequences)
    for op in walk:
        last = op.out
    logits = walk.value(last).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits
