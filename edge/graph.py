"""The model as plain data: ops on tensors with fixed shapes.

The converter makes the graph once; every backend lowers it. A value is a matrix [rows, width]: a
row is a token. `rows` is the chunk length, `logit_rows` how many of the last valid rows get logits
(0 in the middle of a prefill, 1 when generating, all when scoring). Ops are grouped in subgraphs,
the pieces that are scheduled as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from edge.errors import BadGraph
from edge.records import make

Role = Literal["linear", "embedding", "head", "vector", "constant"]
SubgraphKind = Literal["embed", "qkv", "attention", "output", "feed_forward", "head"]
GateFunction = Literal["silu", "gelu_tanh", "gelu", "relu", "relu2"]


@dataclass(frozen=True)
class Tensor:
    """A weight. `role` says what quantization may do with it.

    A matrix is [out, in]; an embedding that is also the head has the role "head". A vector stays
    float32, as does a constant, which the converter computes and which is no parameter.
    """

    name: str
    shape: tuple[int, ...]
    role: Role


@dataclass(frozen=True)
class Cache:
    """Keys and values of one attention: [kv_heads, context, head_dim] each."""

    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Op:
    """Base of all ops. `out` names the value made; class variables say what the fields refer to."""

    out: str
    VALUES: ClassVar[tuple[str, ...]] = ()
    TENSORS: ClassVar[tuple[str, ...]] = ()

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()

    def inputs(self) -> tuple[str, ...]:
        """Names of the values read."""
        return tuple(getattr(self, name) for name in self.VALUES)

    def weights(self) -> tuple[str, ...]:
        """Names of the tensors read."""
        names = (getattr(self, name) for name in self.TENSORS)
        return tuple(name for name in names if name is not None)


@dataclass(frozen=True)
class Embed(Op):
    """out[r] = table[token_ids[r]] * scale."""

    table: str
    scale: float = 1.0
    TENSORS = ("table",)


@dataclass(frozen=True)
class Norm(Op):
    """RMS norm of every run of len(weight) elements: x / sqrt(mean(x^2) + eps) * weight.

    A weight as wide as x is the usual norm; one as wide as a head is QK norm.
    """

    x: str
    weight: str
    eps: float
    VALUES = ("x",)
    TENSORS = ("weight",)


@dataclass(frozen=True)
class Linear(Op):
    """out = x @ weight.T + bias."""

    x: str
    weight: str
    bias: str | None = None
    VALUES = ("x",)
    TENSORS = ("weight", "bias")


@dataclass(frozen=True)
class Rope(Op):
    """Rotary position embedding of the first 2 * len(frequencies) elements of every head.

    Element i turns with element i + len(frequencies), by position * frequencies[i]; `scale`
    multiplies both cosine and sine (the attention factor of yarn and longrope).
    """

    x: str
    frequencies: str
    head_dim: int
    scale: float = 1.0
    VALUES = ("x",)
    TENSORS = ("frequencies",)


@dataclass(frozen=True)
class Attention(Op):
    """Append key and value to a cache, then attend causally to what it holds.

    softmax(softcap * tanh(scale * q k^T / softcap)) v, grouped-query: consecutive query heads share
    a key head. With a window, the query at position p sees positions above p - window.
    """

    query: str
    key: str
    value: str
    cache: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    VALUES = ("query", "key", "value")


@dataclass(frozen=True)
class Gate(Op):
    """out = function(gate) * up."""

    gate: str
    up: str
    function: GateFunction
    VALUES = ("gate", "up")


@dataclass(frozen=True)
class Add(Op):
    """out = a + b."""

    a: str
    b: str
    VALUES = ("a", "b")


@dataclass(frozen=True)
class Int8(Op):
    """Every row rounded to 255 levels of its own: round(x * s) / s, s = 127 / max(max|x|, 1e-5).

    Ties go to the even level. What models trained with 8-bit activations (BitNet b1.58) define, not
    an optimization.
    """

    x: str
    VALUES = ("x",)


@dataclass(frozen=True)
class Softcap(Op):
    """out = cap * tanh(x / cap)."""

    x: str
    cap: float
    VALUES = ("x",)


@dataclass(frozen=True)
class Take(Op):
    """The last `logit_rows` valid rows of x."""

    x: str
    VALUES = ("x",)


OPS: dict[str, type[Op]] = {
    op.__name__.lower(): op
    for op in (Embed, Norm, Linear, Rope, Attention, Gate, Add, Int8, Softcap, Take)
}


@dataclass(frozen=True)
class Subgraph:
    """Ops that are scheduled as one piece. `layer` is None for the embedding and the head."""

    kind: SubgraphKind
    layer: int | None
    ops: tuple[Op, ...]

    @property
    def name(self) -> str:
        return self.kind if self.layer is None else f"layers.{self.layer}.{self.kind}"


@dataclass(frozen=True)
class Graph:
    """A whole model at one chunk length."""

    rows: int
    logit_rows: int
    vocabulary: int
    context: int
    caches: tuple[Cache, ...]
    tensors: tuple[Tensor, ...]
    subgraphs: tuple[Subgraph, ...]

    def resized(self, rows: int, logit_rows: int) -> Graph:
        """The same model for another chunk length."""
        return replace(self, rows=rows, logit_rows=logit_rows)

    def ops(self) -> Iterator[Op]:
        """All ops in order."""
        for subgraph in self.subgraphs:
            yield from subgraph.ops

    @property
    def parameter_count(self) -> int:
        """Weights of the model."""
        return sum(math.prod(t.shape) for t in self.tensors if t.role != "constant")

    @property
    def last(self) -> Op:
        """The op that makes the logits."""
        return self.subgraphs[-1].ops[-1]

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`. Raises BadGraph."""
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise BadGraph(f"the graph has no tensor {name!r}")

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape [rows, width] of every value. Raises BadGraph where ops do not fit together."""
        return _Shapes(self).infer()

    def validate(self) -> Graph:
        """Check the graph whole and return it. Raises BadGraph naming the op and what is wrong."""
        if not self.subgraphs or not self.subgraphs[-1].ops:
            raise BadGraph("the graph has no ops at its end")
        shapes = self.shapes()
        if self.context < 1:
            raise BadGraph(f"a context of {self.context}")
        if not 0 <= self.logit_rows <= self.rows or self.rows < 1:
            raise BadGraph(f"rows {self.rows} with logit_rows {self.logit_rows}")
        logits = shapes[self.last.out]
        if logits != (self.logit_rows, self.vocabulary):
            raise BadGraph(
                f"the last op makes {list(logits)}, "
                f"need logits [{self.logit_rows}, {self.vocabulary}]"
            )
        unused = {t.name for t in self.tensors} - {n for op in self.ops() for n in op.weights()}
        if unused:
            raise BadGraph(f"tensors that no op reads: {', '.join(sorted(unused))}")
        return self

    def __str__(self) -> str:
        return "\n".join(_lines(self))


class _Shapes:
    """Infers the shape of every value, op by op, and checks each op on the way."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors = {tensor.name: tensor.shape for tensor in graph.tensors}
        if len(self.tensors) != len(graph.tensors):
            raise BadGraph("two tensors have the same name")
        self.values: dict[str, tuple[int, int]] = {}
        self.caches: set[int] = set()

    def infer(self) -> dict[str, tuple[int, int]]:
        for op in self.graph.ops():
            for name in op.inputs():
                if name not in self.values:
                    raise _bad(op, f"reads {name!r}, which no earlier op makes")
            for name in op.weights():
                if name not in self.tensors:
                    raise _bad(op, f"reads tensor {name!r}, which the graph does not list")
            if op.out in self.values:
                raise _bad(op, f"makes {op.out!r}, which an earlier op made")
            self.values[op.out] = self.shape_of(op)
        if not self.values:
            raise BadGraph("the graph has no ops")
        return self.values

    def shape_of(self, op: Op) -> tuple[int, int]:
        match op:
            case Embed():
                return self.graph.rows, self.matrix(op, op.table)[1]
            case Take():
                return self.graph.logit_rows, self.values[op.x][1]
            case Linear():
                return self.linear(op)
            case Norm():
                self.divides(op, self.vector(op, op.weight), self.values[op.x][1])
            case Rope():
                self.rope(op)
            case Attention():
                self.attention(op)
            case Gate() | Add():
                a, b = (self.values[name] for name in op.inputs())
                if a != b:
                    raise _bad(op, f"inputs are {list(a)} and {list(b)}, need the same shape")
        return self.values[op.inputs()[0]]

    def matrix(self, op: Op, name: str) -> tuple[int, int]:
        shape = self.tensors[name]
        if len(shape) != 2:
            raise _bad(op, f"tensor {name} is {list(shape)}, need a matrix")
        return shape[0], shape[1]

    def vector(self, op: Op, name: str) -> int:
        shape = self.tensors[name]
        if len(shape) != 1:
            raise _bad(op, f"tensor {name} is {list(shape)}, need a vector")
        return shape[0]

    def divides(self, op: Op, part: int, width: int) -> int:
        if part < 1 or width % part:
            raise _bad(op, f"width {width} is no multiple of {part}")
        return width // part

    def linear(self, op: Linear) -> tuple[int, int]:
        rows, width = self.values[op.x]
        out, expected = self.matrix(op, op.weight)
        if width != expected:
            raise _bad(op, f"x is {width} wide, tensor {op.weight} takes {expected}")
        if op.bias is not None and self.vector(op, op.bias) != out:
            raise _bad(op, f"bias {op.bias} is {self.vector(op, op.bias)} long, need {out}")
        return rows, out

    def rope(self, op: Rope) -> None:
        self.divides(op, op.head_dim, self.values[op.x][1])
        if 2 * self.vector(op, op.frequencies) > op.head_dim:
            raise _bad(op, f"turns more than the head's {op.head_dim} elements")

    def attention(self, op: Attention) -> None:
        if not 0 <= op.cache < len(self.graph.caches):
            raise _bad(op, f"cache {op.cache} of {len(self.graph.caches)}")
        if op.cache in self.caches:
            raise _bad(op, f"cache {op.cache} is another attention's")
        if op.window is not None and op.window < 1:
            raise _bad(op, f"a window of {op.window} tokens")
        self.caches.add(op.cache)
        cache = self.graph.caches[op.cache]
        heads = self.divides(op, cache.head_dim, self.values[op.query][1])
        self.divides(op, cache.kv_heads, heads)
        for name in (op.key, op.value):
            if self.values[name][1] != cache.kv_heads * cache.head_dim:
                raise _bad(op, f"{name} is {self.values[name][1]} wide, the cache takes {cache}")


def _bad(op: Op, detail: str) -> BadGraph:
    return BadGraph(f"op {op.kind} {op.out!r}: {detail}")


def _lines(graph: Graph) -> Iterator[str]:
    shapes = graph.shapes()
    yield f"graph rows={graph.rows} logit_rows={graph.logit_rows} context={graph.context}"
    for subgraph in graph.subgraphs:
        yield f"{subgraph.name}:"
        for op in subgraph.ops:
            yield f"  {op.out} {list(shapes[op.out])} = {op.kind} {_arguments(op)}".rstrip()


def _arguments(op: Op) -> str:
    plain = [f.name for f in fields(op) if f.name not in ("out", *op.VALUES, *op.TENSORS)]
    settings = [f"{name}={getattr(op, name)}" for name in plain if getattr(op, name) is not None]
    return " ".join([*op.inputs(), *(f"@{name}" for name in op.weights()), *settings])


# The graph as JSON, inside a bundle's manifest.


def to_json(graph: Graph) -> dict[str, Any]:
    """The graph as plain JSON values, without its chunk length: one form serves all lengths."""
    return {
        "vocabulary": graph.vocabulary,
        "context": graph.context,
        "caches": [vars(cache) for cache in graph.caches],
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "role": t.role} for t in graph.tensors
        ],
        "subgraphs": [
            {"kind": s.kind, "layer": s.layer, "ops": [{"op": op.kind, **vars(op)} for op in s.ops]}
            for s in graph.subgraphs
        ],
    }


def from_json(data: dict[str, Any], rows: int, logit_rows: int) -> Graph:
    """Read back what `to_json` wrote. Raises BadGraph on anything that does not fit."""
    try:
        parts = {
            "caches": [make(Cache, cache) for cache in data["caches"]],
            "tensors": [make(Tensor, tensor) for tensor in data["tensors"]],
            "subgraphs": [
                make(Subgraph, {**subgraph, "ops": [_op(op) for op in subgraph["ops"]]})
                for subgraph in data["subgraphs"]
            ],
        }
        graph = make(Graph, {**data, **parts, "rows": rows, "logit_rows": logit_rows})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadGraph(f"not a graph: {type(error).__name__}: {error}") from error
    return graph.validate()


def _op(data: dict[str, Any]) -> Op:
    arguments = dict(data)
    kind = arguments.pop("op")
    if kind not in OPS:
        raise BadGraph(
            f"op {kind!r} is not one that this version knows",
            "the bundle may come from a newer Lutra: upgrade, or convert again",
        )
    try:
        return make(OPS[kind], arguments)
    except TypeError as error:
        raise BadGraph(f"op {kind} {arguments.get('out')!r}: {error}") from error
