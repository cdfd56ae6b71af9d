"""Who makes and who reads each value and tensor of a graph: what may be folded, and where."""

from __future__ import annotations

from dataclasses import dataclass, replace

from converter.models.builder import Model
from edge.errors import UnsupportedMath
from edge.graph import Add, Embed, Graph, Linear, Norm, Op, Take, Tensor


class Uses:
    """A graph's values and tensors with the ops that make and read them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.made = {op.out: op for op in graph.ops()}
        self._readers: dict[str, list[Op]] = {}
        self._holders: dict[str, list[Op]] = {}
        for op in graph.ops():
            for name in dict.fromkeys(op.inputs()):
                self._readers.setdefault(name, []).append(op)
            for name in op.weights():
                self._holders.setdefault(name, []).append(op)

    def readers(self, value: str) -> list[Op]:
        """The ops that read a value."""
        return self._readers.get(value, [])

    def own(self, op: Op) -> bool:
        """Whether no other op reads this one's tensors."""
        return all(len(self._holders[name]) == 1 for name in op.weights())

    def projections(self, value: str) -> list[Linear]:
        """The projections that read a value; none where anything else reads it."""
        found = [op for op in self.readers(value) if isinstance(op, Linear) and self.own(op)]
        return found if len(found) == len(self.readers(value)) else []

    def only_source(self, value: str) -> Linear | None:
        """The projection that makes a value which one op alone reads; None where it is not so."""
        op = self.made[value]
        alone = isinstance(op, Linear) and self.own(op) and len(self.readers(value)) == 1
        return op if isinstance(op, Linear) and alone else None


@dataclass(frozen=True)
class Stream:
    """The residual stream: its width, what writes to it, and the norms that read it."""

    width: int
    writers: tuple[Embed | Linear, ...]
    readers: tuple[Norm, ...]


def find_stream(uses: Uses) -> Stream:
    """The residual stream of a decoder.

    Raises UnsupportedMath where something else than projections writes to it, or something else
    than norms in front of projections reads it.
    """
    embed = next(op for op in uses.graph.ops() if isinstance(op, Embed))
    width = uses.graph.tensor(embed.table).shape[1]
    values, readers = {embed.out}, list[Norm]()
    writers: list[Embed | Linear] = [embed]
    for op in uses.graph.ops():
        if not values & set(op.inputs()):
            continue
        if isinstance(op, Add | Take):
            values.add(op.out)
            writers += [_writer(uses, name) for name in op.inputs() if name not in values]
        elif isinstance(op, Norm) and uses.own(op) and uses.projections(op.out):
            readers.append(op)
        else:
            raise _stuck(f"{op.kind} {op.out} reads it, or shares what it makes or its weights")
    return Stream(width, tuple(writers), tuple(readers))


def _writer(uses: Uses, value: str) -> Linear:
    op = uses.only_source(value)
    if op is None:
        raise _stuck(f"{uses.made[value].kind} {value} writes to it, need a projection")
    return op


def _stuck(what: str) -> UnsupportedMath:
    return UnsupportedMath(
        f"the residual stream of this model cannot be rotated: {what}", "leave --rotate out"
    )


def untied(model: Model) -> Model:
    """The model with a head of its own; the same one where it has that."""
    graph = model.graph
    table = next(op.table for op in graph.ops() if isinstance(op, Embed))
    if graph.tensor(table).role != "head":
        return model
    tensors = [replace(t, role="embedding") if t.name == table else t for t in graph.tensors]
    tensors.append(Tensor("head", graph.tensor(table).shape, "head"))
    subgraphs = tuple(
        replace(
            part,
            ops=tuple(
                replace(op, weight="head") if isinstance(op, Linear) and op.weight == table else op
                for op in part.ops
            ),
        )
        for part in graph.subgraphs
    )
    made = replace(graph, tensors=tuple(tensors), subgraphs=subgraphs).validate()
    return replace(model, graph=made, origins={**model.origins, "head": model.origins[table]})
