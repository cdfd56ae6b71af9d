"""A piece of the graph as an ONNX model of fixed shape, quantized, with integer inputs and outputs.

Inputs and outputs are raw codes, so nothing in the graph is float. Biases of outputs are left to
the CPU, which adds them in float; those before a gate are in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.graph import Gate, Linear
from edge.npu import Activation
from edge.pieces import Piece
from npu.htp.nodes import End, Nodes, Opset
from npu.htp.weights import BLOCK, Weights

Floats = NDArray[np.float32]

# The first opset with 4-bit types and blocks.
OPSET = Opset(21, 10)


def act_of(gated: str) -> str:
    """The name of function(gate), which a gate multiplies by up."""
    return f"{gated}.act"


def relu_of(gated: str) -> str:
    """The name of relu(gate), which a squared one squares."""
    return f"{gated}.relu"


def padded_width(width: int, weight_bits: int) -> int:
    """The width that a graph gives a value: whole blocks at 4 bits."""
    return -(-width // BLOCK) * BLOCK if weight_bits == 4 else width


@dataclass(frozen=True)
class Tensors:
    """The tensors of a model as its graphs have them, by name, with smoothing in them.

    `weights` are of projections, at `bits` a weight, their inputs padded to whole blocks; `vector`
    gives all others in float32.
    """

    bits: int
    weights: Callable[[str], Weights]
    vector: Callable[[str], Floats]


def lower(
    piece: Piece,
    rows: int,
    widths: Mapping[str, int],
    activations: Mapping[str, Activation],
    tensors: Tensors,
) -> bytes:
    """The ONNX model of `piece` for chunks of `rows`, as bytes.

    Inputs are padded to `padded_width`; a padded column holds the code of 0. Raises
    MissingDependency without onnx.
    """
    return _PieceLowering(piece, rows, activations, tensors).run(widths)


class Lowering(Nodes):
    """What graphs of pieces and of layers have in common: values and gates."""

    def __init__(
        self, piece: Piece, rows: int, activations: Mapping[str, Activation], tensors: Tensors
    ) -> None:
        super().__init__()
        self.piece = piece
        self.rows = rows
        self.activations = activations
        self.tensors = tensors

    def rounded(self, name: str, activation: Activation | None = None) -> None:
        """Round the exact value, and give what its codes mean to the ops that read it."""
        activation = activation or self.activations[name]
        self.quantize(name, activation)
        if name not in self.piece.outputs or self.read_inside(name):
            self.dequantize(name, activation)

    def read_inside(self, name: str) -> bool:
        return any(name in op.inputs() for op in self.piece.ops)

    def gate(self, op: Gate) -> None:
        act = act_of(op.out)
        gate = f"{op.gate}/f"
        match op.function:
            case "silu":
                sigmoid = f"{op.out}.sigmoid"
                self.node("Sigmoid", [gate], f"{sigmoid}/exact")
                self.rounded(sigmoid, unit(self.activations[op.gate].bits))
                self.node("Mul", [gate, f"{sigmoid}/f"], f"{act}/exact")
            case "gelu_tanh":
                self.node("Gelu", [gate], f"{act}/exact", approximate="tanh")
            case "gelu":
                self.node("Gelu", [gate], f"{act}/exact")
            case "relu":
                self.node("Relu", [gate], f"{act}/exact")
            case "relu2":
                relu = relu_of(op.out)
                self.node("Relu", [gate], f"{relu}/exact")
                self.rounded(relu)
                self.node("Mul", [f"{relu}/f", f"{relu}/f"], f"{act}/exact")
        self.rounded(act)
        self.node("Mul", [f"{act}/f", f"{op.up}/f"], f"{op.out}/exact")
        self.rounded(op.out)


def unit(bits: int) -> Activation:
    """The quantization of values from 0 to 1."""
    return Activation("", bits, 1 / (1 << bits), 0, 0.0, 1.0)


class _PieceLowering(Lowering):
    def run(self, widths: Mapping[str, int]) -> bytes:
        for name in self.piece.inputs:
            self.dequantize(name, self.activations[name])
        for op in self.piece.ops:
            match op:
                case Linear():
                    self.linear(op)
                case Gate():
                    self.gate(op)
        inputs = {n: padded_width(widths[n], self.tensors.bits) for n in self.piece.inputs}
        outputs = {n: widths[n] for n in self.piece.outputs}
        return self.model(self.piece.name, self.ends(inputs), self.ends(outputs), OPSET)

    def ends(self, widths: Mapping[str, int]) -> list[End]:
        return [End(n, self.activations[n], (self.rows, width)) for n, width in widths.items()]

    def linear(self, op: Linear) -> None:
        values = self.tensors.weights(op.weight)
        if not self.made_here(op).intersection(self.piece.outputs):
            values = values.padded(padded_width(values.codes.shape[1], self.tensors.bits))
        inputs, kind = [f"{op.x}/f", self.weight(f"weights/{op.weight}", values)], "MatMul"
        if op.bias is not None and op.out not in self.piece.outputs:
            scales = np.float32(self.activations[op.x].scale) * values.scales
            inputs.append(self.bias(f"weights/{op.bias}", self.tensors.vector(op.bias), scales))
            kind = "Gemm"
        self.node(kind, inputs, f"{op.out}/exact")
        self.rounded(op.out)

    def made_here(self, op: Linear) -> set[str]:
        """The value that a projection makes, and the gate's that has its width."""
        return {op.out, *(o.out for o in self.piece.ops if op.out in o.inputs())}
