"""Mixed precision measured on the model: how much each tensor's rounding changes what it predicts.

One tensor at a time is quantized to every width, as it will be, all others stay float, and the KL
divergence of the predictions is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from converter.calibrate import FloatTensors, Walk
from converter.calibrated import head_of, is_embedding
from converter.plan import Plan, PlannedTensor
from converter.quantize.allocate import Choice, allocate
from converter.quantize.gptq import Curvature, Effort, quantize
from converter.quantize.grid import Floats
from converter.quantize.rtn import quantize_rows
from converter.samples import Samples
from converter.weights import Weights
from edge.errors import UsageError
from edge.formats import INTEGER_BITS, Format
from edge.graph import Embed, Linear, Op
from edge.planes import dequantize
from edge.reference import Values
from edge.watch import Watcher


@dataclass(frozen=True)
class Sensitivity:
    """KL divergence, in nats a token, from quantizing one tensor, by its width in bits."""

    tensor: PlannedTensor
    kl: Mapping[int, float]


def measure(
    weights: Weights,
    plan: Plan,
    widths: Sequence[int],
    samples: Samples,
    effort: Effort | None,
    watcher: Watcher,
) -> list[Sensitivity]:
    """Measure every tensor of the plan whose width is open, by GPTQ or, without `effort`, rounding.

    A walk of the samples through the float model stops at each tensor, and goes on to the end with
    each of its quantized forms. Raises MissingDependency without Numba, where there is effort.
    """
    graph, tensors = weights.model.graph, FloatTensors(weights)
    exact = _log_probs(Walk(graph, tensors, samples.sequences).finish())
    free = {p.tensor.name: p for p in plan.tensors if may_change(p)}
    watcher.start("sensitivity", len(widths) * len(free), "runs")
    tied = head_of(graph).weight
    found = []
    for op in (walk := Walk(graph, tensors, samples.sequences)):
        for name in op.weights():
            if name not in free or (isinstance(op, Embed) and name == tied):
                continue
            planned, kl = free.pop(name), dict[int, float]()
            forms = [at_bits(planned.form, bits) for bits in widths]
            for bits, values in _quantized(forms, tensors.dense(name), walk, op, effort):
                tensors.replace(name, values)
                whole = is_embedding(graph, name)  # then what has run has to run again
                rest = Walk(graph, tensors, samples.sequences) if whole else walk.fork(tensors)
                kl[bits] = _divergence(exact, _log_probs(rest.finish()))
                tensors.forget(name)
                watcher.advance(1)
            found.append(Sensitivity(planned, kl))
    return found


def widths_for(plan: Plan, budget: int) -> tuple[int, ...]:
    """The widths to choose from for a budget of bytes: 1 bit only where 2 do not fit.

    So little is gained by it elsewhere that it is not worth the time of measuring. Raises
    UsageError where even the smallest formats take more.
    """
    smallest, *others = INTEGER_BITS
    if budget >= _byte_count(plan, others[0]):
        return tuple(others)
    least = _byte_count(plan, smallest)
    if budget < least:
        raise UsageError(
            f"a size of {budget} bytes for all weights, the smallest formats take {least}",
            "ask for a larger size, or larger groups",
        )
    return INTEGER_BITS


def _byte_count(plan: Plan, bits: int) -> int:
    """Bytes of a plan with every open width at so many bits."""
    return sum(
        (replace(p, form=at_bits(p.form, bits)) if may_change(p) else p).byte_count
        for p in plan.tensors
    )


def _quantized(
    forms: Sequence[Format], rows: Floats, walk: Walk, op: Op, effort: Effort | None
) -> Iterator[tuple[int, Floats]]:
    """What a tensor becomes in each format, by its bits, for the float model's inputs."""
    curvature = None
    if isinstance(op, Linear) and effort is not None:
        x = walk.value(op.x).astype(np.float64)
        curvature = Curvature(x.T @ x / len(x), effort)
    for form in forms:
        if curvature is None:
            yield form.bits, dequantize(form, quantize_rows(form, rows))
        else:
            grid, codes = quantize(form, rows, curvature)
            yield form.bits, grid.decode(codes)


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


def _divergence(exact: NDArray[np.float64], made: NDArray[np.float64]) -> float:
    return max(float((np.exp(exact) * (exact - made)).sum(axis=1).mean()), 0.0)


def _log_probs(values: Values) -> NDArray[np.float64]:
    logits = values.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits
