"""A decoder of random weights, cut as NPU prefill cuts it, for measuring how its jobs overlap.

Projections are 8-bit graphs on ONNX Runtime, one thread each, in the place of an NPU; norms and
attention are NumPy in float32. Values flow as they would: what one job makes the next one takes, so
schedules can be compared by their results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import MissingDependency
from edge.jobs import CPU, NPU, Part, Stage
from npu.soc.work import ModelWork, Projections

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Activations: uint8 with zero 128. One scale does, since weights are scaled to keep variance.
SCALE, ZERO = 0.03, 128
KINDS = ("norm", "qkv", "keys", "attention", "output", "feed_forward_norm", "feed_forward")
_ON_NPU = ("qkv", "output", "feed_forward")


@dataclass(frozen=True)
class Sizes:
    """How the prompt is cut, and the heads of every layer."""

    rows: int
    chunks: int
    head_dim: int


class OverlapModel:
    """The jobs of `work` for one prompt: `act` does one, `results` has what came of them.

    `threads` are those of each projection.
    """

    def __init__(self, work: ModelWork, sizes: Sizes, threads: int = 1, seed: int = 0) -> None:
        self.work = work
        self.sizes = sizes
        generator = np.random.default_rng(seed)
        self._sessions = {
            f"{index}.{kind}": _session(projections, kind, sizes.rows, generator, threads)
            for index, layer in enumerate(work.layers)
            for kind, projections in layer.projections
        }
        shape = sizes.chunks, sizes.rows, work.layers[0].width
        self._prompt = generator.normal(size=shape).astype(np.float32)
        self.reset()

    def reset(self) -> None:
        """Begin the prompt anew."""
        context = self.sizes.rows * self.sizes.chunks
        self.results = self._prompt.copy()  # the residual: [chunks, rows, width]
        self._codes: list[list[Codes]] = [[] for _ in range(self.sizes.chunks)]
        self._cache = [
            np.zeros((2, layer.kv_width // self.sizes.head_dim, context, self.sizes.head_dim), "f4")
            for layer in self.work.layers
        ]

    def stages(self) -> list[Stage]:
        """The stages of a chunk. The last of them leaves its result to the residual."""
        names = [f"{i}.{kind}" for i in range(len(self.work.layers)) for kind in KINDS]
        stages = [Stage(name, (_part(name),), name.endswith("attention")) for name in names]
        return [*stages, Stage("end.norm", (Part(CPU),))]

    def act(self, chunk: int, stage: str) -> None:
        """Do one job: `stage` of a chunk, whose values are where the job before left them."""
        index, kind = stage.split(".")
        if kind in _ON_NPU:
            session = self._sessions[stage]
            self._codes[chunk] = session.run(None, {"x": self._codes[chunk][0]})
        elif kind == "keys":
            self._append(int(index), chunk)
        elif kind == "attention":
            self._codes[chunk] = [self._attend(int(index), chunk)]
        else:
            self._codes[chunk] = [self._norm(chunk)]

    def _norm(self, chunk: int) -> Codes:
        """Add what the NPU made to the residual, and norm it."""
        residual = self.results[chunk]
        if self._codes[chunk]:
            residual += _floats(self._codes[chunk][0])
        mean = np.einsum("rw,rw->r", residual, residual) / residual.shape[1]
        return _quantize(residual / np.sqrt(mean + 1e-6)[:, None])

    def _append(self, index: int, chunk: int) -> None:
        """Put a chunk's keys and values in the layer's cache."""
        first, rows = chunk * self.sizes.rows, self.sizes.rows
        _, key, value = self._codes[chunk]
        self._cache[index][:, :, first : first + rows] = self._heads(key), self._heads(value)

    def _heads(self, codes: Codes) -> Floats:
        """Values [heads, rows, head_dim] of codes [rows, width]."""
        rows, head_dim = self.sizes.rows, self.sizes.head_dim
        return _floats(codes).reshape(rows, -1, head_dim).transpose(1, 0, 2)

    def _attend(self, index: int, chunk: int) -> Codes:
        """Causal attention of one chunk over the chunks up to its own."""
        rows, head_dim = self.sizes.rows, self.sizes.head_dim
        first, last = chunk * rows, (chunk + 1) * rows
        query, cache = self._heads(self._codes[chunk][0]), self._cache[index]
        group = len(query) // cache.shape[1]
        made = np.empty_like(query)
        hidden = np.arange(last)[None, :] > np.arange(first, last)[:, None]
        for head, q in enumerate(query):
            keys, values = cache[:, head // group, :last]
            scores = q @ keys.T
            scores *= np.float32(head_dim**-0.5)
            scores[hidden] = -np.inf
            scores -= scores.max(axis=1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=1, keepdims=True)
            made[head] = scores @ values
        return _quantize(made.transpose(1, 0, 2).reshape(rows, -1))


def _part(name: str) -> Part:
    return Part(NPU if name.split(".")[1] in _ON_NPU else CPU)


def _quantize(values: Floats) -> Codes:
    return np.clip(np.rint(values / np.float32(SCALE)) + ZERO, 0, 255).astype(np.uint8)


def _floats(codes: Codes) -> Floats:
    return (codes.astype(np.float32) - np.float32(ZERO)) * np.float32(SCALE)


def _session(
    projections: Projections,
    kind: str,
    rows: int,
    generator: np.random.Generator,
    threads: int,
) -> Any:
    """A session of one subgraph with random weights: "x" uint8 [rows, width] to uint8 outputs."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            f"this benchmark needs {error.name}", 'pip install "lutra[npu]" onnx'
        ) from error
    graph = _Graph(onnx, generator)
    matrices = projections.matrices
    if kind == "feed_forward":
        *gates, down = matrices
        made = [graph.linear("x", matrix.out, matrix.width) for matrix in gates]
        gated = graph.node("Mul", [graph.node("Sigmoid", [made[0]]), made[0]])
        for other in made[1:]:
            gated = graph.node("Mul", [gated, other])
        outputs = [graph.codes(graph.linear(graph.codes(gated), down.out, down.width))]
    else:
        outputs = [graph.codes(graph.linear("x", m.out, m.width)) for m in matrices]
    model = graph.model([rows, matrices[0].width], outputs)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _Graph:
    """Collects the nodes of one subgraph."""

    def __init__(self, onnx: Any, generator: np.random.Generator) -> None:
        self._onnx = onnx
        self._generator = generator
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._scale = self.constant(np.float32(SCALE))
        self._zero = self.constant(np.uint8(ZERO))

    def constant(self, values: Any) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, kind: str, inputs: Sequence[str]) -> str:
        name = f"v{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), [name]))
        return name

    def linear(self, x: str, out: int, width: int) -> str:
        """Codes times 8-bit weights as float; the scale keeps variance."""
        weights = self._generator.integers(-127, 128, (width, out), np.int8)
        product = self.node("MatMulInteger", [x, self.constant(weights), self._zero])
        scale = np.float32(SCALE / (73 * width**0.5))  # 73: deviation of such weights
        return self.node("Mul", [self.node("Cast", [product]), self.constant(scale)])

    def codes(self, x: str) -> str:
        return self.node("QuantizeLinear", [x, self._scale, self._zero])

    def model(self, shape: list[int], outputs: Sequence[str]) -> bytes:
        helper, types = self._onnx.helper, self._onnx.TensorProto
        for node in self._nodes:
            if node.op_type == "Cast":
                node.attribute.append(helper.make_attribute("to", types.FLOAT))
        graph = helper.make_graph(
            self._nodes,
            "subgraph",
            [helper.make_tensor_value_info("x", types.UINT8, shape)],
            [helper.make_tensor_value_info(name, types.UINT8, None) for name in outputs],
            self._constants,
        )
        opset = [helper.make_opsetid("", 13)]
        made: bytes = helper.make_model(
            graph, opset_imports=opset, ir_version=8
        ).SerializeToString()
        return made
