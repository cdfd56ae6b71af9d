"""Static pieces of a graph: what an NPU computes with one graph for all chunks of a prompt.

A piece is a run of projections, and the gate between them, inside one subgraph (llm.npu, section
3.2). Nothing in it depends on a token's position, so a chunk of fixed length goes through the same
graph whatever its place in the prompt. Norms, RoPE, attention and residual sums are the CPU's, and
so is a gate between projections where outliers are put back before it: it is not linear.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from edge.graph import Gate, Graph, Linear, Op, Subgraph

STATIC = ("qkv", "output", "feed_forward")


@dataclass(frozen=True)
class Piece:
    """Ops that one NPU graph holds, named after their subgraph.

    `inputs` are the values that it is given, `outputs` those that others read.
    """

    name: str
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def linears(self) -> tuple[Linear, ...]:
        return tuple(op for op in self.ops if isinstance(op, Linear))


@dataclass(frozen=True)
class Float:
    """Ops in a row that stay on the CPU."""

    ops: tuple[Op, ...]


def segments(graph: Graph, float_gates: Collection[str] = ()) -> list[Float | Piece]:
    """The graph's ops up to the head, in order, as pieces and what lies between them.

    `float_gates` are the values of gates that stay on the CPU; they part a feed-forward in two.
    """
    readers = _readers(graph)
    made: list[Float | Piece] = []
    for subgraph in graph.subgraphs:
        if subgraph.kind != "head":
            made += _cut(subgraph, readers, float_gates)
    return _joined(made)


def static_pieces(graph: Graph, float_gates: Collection[str] = ()) -> tuple[Piece, ...]:
    """The graph's pieces in order."""
    return tuple(s for s in segments(graph, float_gates) if isinstance(s, Piece))


def layer_pieces(graph: Graph) -> tuple[Piece, ...]:
    """Whole layers as pieces, in order."""
    readers = _readers(graph)
    layers: dict[int, list[Op]] = {}
    for subgraph in graph.subgraphs:
        if subgraph.layer is not None:
            layers.setdefault(subgraph.layer, []).extend(subgraph.ops)
    return tuple(_piece(f"layers.{layer}", ops, readers) for layer, ops in layers.items())


def _readers(graph: Graph) -> dict[str, set[str]]:
    """For each value, the values that are made from it."""
    readers: dict[str, set[str]] = {}
    for op in graph.ops():
        for name in op.inputs():
            readers.setdefault(name, set()).add(op.out)
    return readers


def _cut(
    subgraph: Subgraph, readers: dict[str, set[str]], float_gates: Collection[str]
) -> list[Float | Piece]:
    made: list[Float | Piece] = []
    run: list[Op] = []
    pieces = 0
    for op in (*subgraph.ops, None):
        static = isinstance(op, Linear | Gate) and op.out not in float_gates
        if op is not None and static and subgraph.kind in STATIC:
            run.append(op)
            continue
        if run:
            suffix = f".{pieces}" if pieces else ""
            made.append(_piece(subgraph.name + suffix, run, readers))
            pieces, run = pieces + 1, []
        if op is not None:
            made.append(Float((op,)))
    return made


def _piece(name: str, ops: Sequence[Op], readers: dict[str, set[str]]) -> Piece:
    inside = {op.out for op in ops}
    read = dict.fromkeys(name for op in ops for name in op.inputs())
    inputs = tuple(value for value in read if value not in inside)
    outputs = tuple(op.out for op in ops if readers.get(op.out, set()) - inside)
    return Piece(name, tuple(ops), inputs, outputs)


def _joined(made: Sequence[Float | Piece]) -> list[Float | Piece]:
    """The same with neighbouring floats in one."""
    joined: list[Float | Piece] = []
    for segment in made:
        if joined and isinstance(segment, Float) and isinstance(joined[-1], Float):
            joined[-1] = Float(joined[-1].ops + segment.ops)
        else:
            joined.append(segment)
    return joined
