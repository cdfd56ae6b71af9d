"""The graphs of a bundle's NPU program, in either form: their names, inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

from edge.graph import Graph
from edge.npu import NpuRecord
from edge.pieces import layer_pieces
from npu.htp.layer import Layer
from npu.htp.lower import padded_width
from npu.htp.nodes import End

_PREFILL, _DECODE = ".prefill", ".decode"


@dataclass(frozen=True)
class Ends:
    """What a graph is given, and what it makes."""

    inputs: tuple[End, ...]
    outputs: tuple[End, ...]


def graph_ends(graph: Graph, record: NpuRecord) -> dict[str, Ends]:
    """The ends of every graph, by its name."""
    if record.form == "layers":
        activations = record.by_value()
        return {
            name: Ends(tuple(layer.inputs(activations)), tuple(layer.outputs(activations)))
            for name, layer in make_layers(graph, record.rows, record.positions).items()
        }
    return _piece_ends(graph, record)


def make_layers(graph: Graph, rows: int, positions: int) -> dict[str, Layer]:
    """Whole layers by the names of their graphs: each for a chunk, and for one token."""
    return {
        f"{piece.name}{kind}": Layer(piece, graph, length, positions)
        for kind, length in ((_PREFILL, rows), (_DECODE, 1))
        for piece in layer_pieces(graph)
    }


def decodes(name: str) -> bool:
    """Whether a graph, by its name, is for one token."""
    return name.endswith(_DECODE)


def _piece_ends(graph: Graph, record: NpuRecord) -> dict[str, Ends]:
    activations, shapes = record.by_value(), graph.shapes()
    made = {}
    for piece in record.pieces(graph):
        given = {n: padded_width(shapes[n][1], record.weight_bits) for n in piece.inputs}
        taken = {n: shapes[n][1] for n in piece.outputs}
        ends = (
            tuple(End(n, activations[n], (record.rows, width)) for n, width in widths.items())
            for widths in (given, taken)
        )
        made[piece.name] = Ends(*ends)
    return made
