"""What a conversion keeps of a source that is quantized already, and what it says of the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from converter.plan import Formats, Plan, make_plan
from converter.sources.source import Stored
from converter.weights import Weights
from edge.errors import UnsupportedMath


def plan_source(weights: Weights, formats: Formats) -> tuple[Plan, tuple[str, ...]]:
    """Plan a conversion that keeps what it can of the source where no format is given.

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
    tensors = make_plan(graph, formats, own).tensors
    plan = Plan(tuple(replace(p, kept=exact.get(p.tensor.name) == p.form) for p in tensors))
    return plan, tuple(_notes(plan, stored))


def _notes(plan: Plan, stored: Mapping[str, Stored]) -> Iterator[str]:
    """What becomes of tensors that are quantized in the source and not kept as they are."""
    anew = Counter(
        (how.kind, str(p.form), how.form == p.form)
        for p in plan.tensors
        if (how := stored.get(p.tensor.name)) is not None
        and (how.form is None or how.form.quantized)
        and p.form.quantized
        and not p.kept
    )
    for (kind, form, nearest), count in sorted(anew.items()):
        why = (
            "no format here holds them exactly, this one nearly; --weights and --head choose others"
            if nearest
            else "what they were quantized from would give better text"
        )
        yield f"note: {count} tensors in {kind} are quantized anew, to {form}: {why}"
