"""Nodes of a quantized ONNX graph: every value as codes, and as what the codes mean.

A value "v" has its codes in "v" and their float meaning in "v/f". QuantizeLinear and
DequantizeLinear stand around every op, and the HTP's compiler folds them into integer ops.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import MissingDependency
from edge.npu import Activation
from npu.htp.weights import BLOCK, Weights

if TYPE_CHECKING:
    import onnx

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Opset:
    """An ONNX opset, and the version of the file format that goes with it."""

    number: int
    ir_version: int


@dataclass(frozen=True)
class End:
    """An input or an output of a graph: raw codes."""

    name: str
    activation: Activation
    shape: tuple[int, ...]


class Nodes:
    """The nodes and initializers of one model. Raises MissingDependency without onnx."""

    def __init__(self) -> None:
        try:
            import onnx
        except ImportError as error:
            raise MissingDependency(
                "making NPU graphs needs onnx", 'pip install "lutra[npu]"'
            ) from error
        self.onnx: Any = onnx
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def model(
        self, name: str, inputs: Sequence[End], outputs: Sequence[End], opset: Opset
    ) -> bytes:
        """The model, checked, as bytes."""
        helper = self.onnx.helper
        ends = ([self.described(end) for end in all_of] for all_of in (inputs, outputs))
        graph = helper.make_graph(self.nodes, name, *ends, list(self.constants.values()))
        opsets = [helper.make_opsetid("", opset.number)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=opset.ir_version)
        self.onnx.checker.check_model(model)
        made: bytes = model.SerializeToString()
        return made

    def described(self, end: End) -> Any:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(end.activation.dtype)
        return self.onnx.helper.make_tensor_value_info(end.name, kind, end.shape)

    def quantize(self, name: str, activation: Activation) -> None:
        """Codes of an exact value, "v/exact"."""
        inputs = [f"{name}/exact", *self.parameters(name, activation)]
        self.node("QuantizeLinear", inputs, name)

    def dequantize(self, name: str, activation: Activation) -> None:
        """What codes mean, for the ops that read them."""
        inputs = [name, *self.parameters(name, activation)]
        self.node("DequantizeLinear", inputs, f"{name}/f")

    def parameters(self, name: str, activation: Activation) -> list[str]:
        scale = self.constant(f"{name}/scale", np.asarray(activation.scale, np.float32))
        zero = self.constant(f"{name}/zero", np.asarray(activation.zero, activation.dtype))
        return [scale, zero]

    def weight(self, name: str, values: Weights) -> str:
        """Weights [in, out] as what their codes mean: a scale a channel, or a block at 4 bits."""
        if values.bits == 4:
            kind = self.onnx.TensorProto.INT4
            codes = values.codes
            tensor = self.onnx.helper.make_tensor(name, kind, codes.shape, codes.reshape(-1))
            zeros = np.zeros(values.scales.size, np.int8)
            zero = self.onnx.helper.make_tensor(f"{name}/zero", kind, values.scales.shape, zeros)
            self.constants |= {name: tensor, f"{name}/zero": zero}
            inputs = [name, self.constant(f"{name}/scale", values.scales), f"{name}/zero"]
            self.node("DequantizeLinear", inputs, f"{name}/f", axis=0, block_size=BLOCK)
        else:
            self.constant(name, values.codes)
            zeros = np.zeros(values.scales.shape, np.int8)
            inputs = [
                name,
                self.constant(f"{name}/scale", values.scales),
                self.constant(f"{name}/zero", zeros),
            ]
            self.node("DequantizeLinear", inputs, f"{name}/f", axis=1)
        return f"{name}/f"

    def bias(self, name: str, values: Floats, scales: Floats) -> str:
        """A bias as int32 codes of the products' scales, padded to as many."""
        codes = np.rint(np.pad(values, (0, len(scales) - len(values))) / scales)
        limits = np.iinfo(np.int32)
        self.constant(name, np.clip(codes, limits.min, limits.max).astype(np.int32))
        zero = self.constant(f"{name}/zero", np.zeros(len(scales), np.int32))
        inputs = [name, self.constant(f"{name}/scale", scales), zero]
        self.node("DequantizeLinear", inputs, f"{name}/f", axis=0)
        return f"{name}/f"

    def constant(self, name: str, values: NDArray[Any]) -> str:
        self.constants[name] = self.onnx.numpy_helper.from_array(values, name)
        return name

    def node(self, kind: str, inputs: Collection[str], out: str, **attributes: Any) -> None:
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [out], name=out, **attributes))
