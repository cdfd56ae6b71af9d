"""A piece of the graph as an ONNX model of fixed shape, quantized, with integer inputs and outputs.

Opset 21 with QuantizeLinear and DequantizeLinear around every op, which the HTP's compiler folds
into integer ops. Inputs and outputs are raw codes, so nothing in the graph is float. Biases of
outputs are left to the CPU, which adds them in float; those before a gate are in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import MissingDependency
from edge.graph import Gate, Linear
from edge.npu import Activation
from edge.pieces import Piece
from npu.htp.weights import BLOCK, quantize

if TYPE_CHECKING:
    import onnx

Floats = NDArray[np.float32]

# The first opset with 4-bit types and blocks.
OPSET, IR_VERSION = 21, 10


def act_of(gated: str) -> str:
    """The name of function(gate), which a gate multiplies by up."""
    return f"{gated}.act"


def relu_of(gated: str) -> str:
    """The name of relu(gate), which a squared one squares."""
    return f"{gated}.relu"


def padded_width(width: int, weight_bits: int) -> int:
    """The width that a graph gives a value: whole blocks at 4 bits."""
    return -(-width // BLOCK) * BLOCK if weight_bits == 4 else width


def lower(
    piece: Piece,
    rows: int,
    widths: Mapping[str, int],
    activations: Mapping[str, Activation],
    weights: Callable[[str], Floats],
    weight_bits: int,
) -> bytes:
    """The ONNX model of `piece` for chunks of `rows`, as bytes.

    `weights(name)` gives a tensor in float32, [out, in] with smoothing in it. Inputs are padded to
    `padded_width`; a padded column holds the code of 0. Raises MissingDependency without onnx.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependency(
            "making NPU graphs needs onnx", 'pip install "lutra[npu]"'
        ) from error
    return _Lowering(onnx, piece, rows, widths, activations, weights, weight_bits).run()


class _Lowering:
    """The nodes and initializers of one model, op by op."""

    def __init__(
        self,
        library: Any,
        piece: Piece,
        rows: int,
        widths: Mapping[str, int],
        activations: Mapping[str, Activation],
        weights: Callable[[str], Floats],
        weight_bits: int,
    ) -> None:
        self.onnx = library
        self.piece = piece
        self.rows = rows
        self.widths = widths
        self.activations = activations
        self.weights = weights
        self.bits = weight_bits
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def run(self) -> bytes:
        for name in self.piece.inputs:
            self.dequantize(name, name)
        for op in self.piece.ops:
            match op:
                case Linear():
                    self.linear(op)
                case Gate():
                    self.gate(op)
        helper = self.onnx.helper
        graph = helper.make_graph(
            self.nodes,
            self.piece.name,
            [self.described(name) for name in self.piece.inputs],
            [self.described(name) for name in self.piece.outputs],
            list(self.constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        self.onnx.checker.check_model(model)
        made: bytes = model.SerializeToString()
        return made

    # Ops. A value "v" has its codes in "v" and their float meaning in "v/f".

    def linear(self, op: Linear) -> None:
        values = quantize(self.padded(op), self.bits)
        weight = self.weight(f"weights/{op.weight}", values.codes, values.scales)
        inputs, kind = [f"{op.x}/f", weight], "MatMul"
        if op.bias is not None and op.out not in self.piece.outputs:
            scales = np.float32(self.activations[op.x].scale) * values.scales
            inputs.append(self.bias(op.bias, scales))
            kind = "Gemm"
        self.node(kind, inputs, f"{op.out}/exact")
        self.quantize(op.out)

    def gate(self, op: Gate) -> None:
        act = act_of(op.out)
        gate = f"{op.gate}/f"
        match op.function:
            case "silu":
                sigmoid = f"{op.out}.sigmoid"
                self.node("Sigmoid", [gate], f"{sigmoid}/exact")
                self.quantize(sigmoid, self.unit(op.gate))
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
                self.quantize(relu)
                self.node("Mul", [f"{relu}/f", f"{relu}/f"], f"{act}/exact")
        self.quantize(act)
        self.node("Mul", [f"{act}/f", f"{op.up}/f"], f"{op.out}/exact")
        self.quantize(op.out)

    def unit(self, like: str) -> Activation:
        """The quantization of values from 0 to 1."""
        bits = self.activations[like].bits
        return Activation("", bits, 1 / (1 << bits), 0, 0.0, 1.0)

    # Parts.

    def padded(self, op: Linear) -> Floats:
        """The weights [out, in], padded with zeros to the widths that the graph has."""
        weights = self.weights(op.weight)
        out = weights.shape[0]
        if not self.made_here(op).intersection(self.piece.outputs):
            out = padded_width(out, self.bits)
        width = padded_width(weights.shape[1], self.bits)
        return np.pad(weights, ((0, out - weights.shape[0]), (0, width - weights.shape[1])))

    def made_here(self, op: Linear) -> set[str]:
        """The value that a projection makes, and the gate's that has its width."""
        return {op.out, *(o.out for o in self.piece.ops if op.out in o.inputs())}

    def weight(self, name: str, codes: NDArray[np.int8], scales: Floats) -> str:
        if self.bits == 4:
            kind = self.onnx.TensorProto.INT4
            tensor = self.onnx.helper.make_tensor(name, kind, codes.shape, codes.reshape(-1))
            zeros = np.zeros(scales.size, np.int8)
            zero = self.onnx.helper.make_tensor(f"{name}/zero", kind, scales.shape, zeros)
            self.constants |= {name: tensor, f"{name}/zero": zero}
            inputs = [name, self.constant(f"{name}/scale", scales), f"{name}/zero"]
            self.node("DequantizeLinear", inputs, f"{name}/f", axis=0, block_size=BLOCK)
        else:
            self.constant(name, codes)
            zero = self.constant(f"{name}/zero", np.zeros(scales.shape, np.int8))
            inputs = [name, self.constant(f"{name}/scale", scales), zero]
            self.node("DequantizeLinear", inputs, f"{name}/f", axis=1)
        return f"{name}/f"

    def bias(self, tensor: str, scales: Floats) -> str:
        name, values, width = f"weights/{tensor}", self.weights(tensor), len(scales)
        codes = np.rint(np.pad(values, (0, width - len(values))) / scales)
        limits = np.iinfo(np.int32)
        self.constant(name, np.clip(codes, limits.min, limits.max).astype(np.int32))
        zero = self.constant(f"{name}/zero", np.zeros(width, np.int32))
        inputs = [name, self.constant(f"{name}/scale", scales), zero]
        self.node("DequantizeLinear", inputs, f"{name}/f", axis=0)
        return f"{name}/f"

    def quantize(self, name: str, activation: Activation | None = None) -> None:
        """Codes of the exact value, and what they mean, for the ops that read it."""
        inputs = [f"{name}/exact", *self.parameters(name, activation)]
        self.node("QuantizeLinear", inputs, name)
        if name not in self.piece.outputs:
            self.dequantize(name, name, activation)

    def dequantize(self, codes: str, name: str, activation: Activation | None = None) -> None:
        inputs = [codes, *self.parameters(name, activation)]
        self.node("DequantizeLinear", inputs, f"{name}/f")

    def parameters(self, name: str, activation: Activation | None) -> list[str]:
        chosen = activation or self.activations[name]
        scale = self.constant(f"{name}/scale", np.asarray(chosen.scale, np.float32))
        zero = self.constant(f"{name}/zero", np.asarray(chosen.zero, f"uint{chosen.bits}"))
        return [scale, zero]

    def constant(self, name: str, values: NDArray[Any]) -> str:
        self.constants[name] = self.onnx.numpy_helper.from_array(values, name)
        return name

    def node(self, kind: str, inputs: list[str], out: str, **attributes: Any) -> None:
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [out], name=out, **attributes))

    def described(self, name: str) -> Any:
        given = name in self.piece.inputs
        width = padded_width(self.widths[name], self.bits) if given else self.widths[name]
        proto = self.onnx.TensorProto
        kind = proto.UINT8 if self.activations[name].bits == 8 else proto.UINT16
        return self.onnx.helper.make_tensor_value_info(name, kind, [self.rows, width])
