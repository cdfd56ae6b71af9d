"""What a conversion keeps of a source that is quantized already, and what it says of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from converter.plan import Formats, Plan, PlannedTensor, make_plan
from converter.sources.source import NEAREST, Stored
from converter.weights import Weights
from edge.errors import UnsupportedMath
from edge.formats import Format


def plan_source(weights: Weights, formats: Formats) -> tuple[Plan, tuple[str, ...]]:
    """Plan a conversion that keeps what it can of the source where no format is given.

    Integers whose order the model cannot take (`converter.reorder`) become the nearest format.
    Returns the plan, and notes on tensors that are quantized anew. Raises UnsupportedMath for
    integers that no format holds and that none was given for.
    """
    source, graph = weights.checkpoint, weights.model.graph
    if not source.quantized:
        return make_plan(graph, formats), ()
    stored = weights.stored()
    for tensor in graph.tensors:
        how = stored.get(tensor.name)
        if how is not None and how.form is None and formats.of(tensor.role) is None:
            name = weights.model.origins[tensor.name].name
            raise UnsupportedMath(
                f"{source.shard_of(name)}: tensor {name} ({how.kind}) cannot be kept: "
                f"{how.why_not}",
                "--weights w8g32 quantizes it anew, nearly exactly; or convert the checkpoint "
                "that it was made from",
            )
    own = {name: how.form for name, how in stored.items() if how.form is not None}
    exact = {name: form for name, form in own.items() if stored[name].codes}
    for name in [name for name in exact if _out_of_order(weights, name, stored[name])]:
        own[name] = NEAREST
        del exact[name]
    tensors = make_plan(graph, formats, own).tensors
    plan = Plan(tuple(replace(p, kept=exact.get(p.tensor.name) == p.form) for p in tensors))
    return plan, tuple(_notes(plan, stored))


def _out_of_order(weights: Weights, name: str, how: Stored) -> bool:
    fold = weights.folds.get(name)
    return how.order is not None and not (fold and fold.right)


def _notes(plan: Plan, stored: Mapping[str, Stored]) -> Iterator[str]:
    """What becomes of tensors that are quantized in the source and not kept as they are."""
    alike: dict[tuple[str, str, str, bool], list[PlannedTensor]] = {}
    for p in plan.tensors:
        how = stored.get(p.tensor.name)
        if how is None or p.kept or not p.form.quantized:
            continue
        if how.form is None or how.form.quantized:
            key = how.kind, str(p.form), str(how.form or ""), how.order is not None
            alike.setdefault(key, []).append(p)
    for (kind, form, own, ordered), same in sorted(alike.items()):
        if ordered and own != form == str(NEAREST):
            why = _cost_of_order(Plan(tuple(same)), Format.parse(own))
        elif own == form and (not ordered or form == str(NEAREST)):
            why = (
                "no format here holds them exactly, this one nearly; --weights and --head choose "
                "others"
            )
        else:
            why = "what they were quantized from would give better text"
        yield f"note: {len(same)} tensors in {kind} are quantized anew, to {form}: {why}"


def _cost_of_order(plan: Plan, own: Format) -> str:
    kept = Plan(tuple(replace(p, form=own) for p in plan.tensors))
    return (
        "no format here holds groups out of order along the rows (act-order), this one nearly, in "
        f"{plan.bits_per_weight:.3g} bits a weight instead of {kept.bits_per_weight:.3g}; "
        f"--weights {own} keeps the size and loses some accuracy"
    )
