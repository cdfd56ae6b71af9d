"""The conversion plan: each tensor's format and what it costs. Pure: reads no weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edge.formats import F32, Format
from edge.graph import Graph, Role, Tensor
from edge.planes import parts_of

# What weights become that are floats in the source, unless told.
DEFAULT_WEIGHTS = Format.parse("w4g64")


@dataclass(frozen=True)
class Formats:
    """Formats by what a tensor is for; None is the source's own. A tied embedding is the head's."""

    weights: Format | None
    head: Format | None
    embedding: Format | None

    @staticmethod
    def parse(
        weights: str | None = None, head: str | None = None, embedding: str | None = None
    ) -> Formats:
        """Formats from their text forms. Raises UnknownFormat.

        The head defaults to the weights' format but to no less than 4 bits, since its errors go
        straight into the logits; the embedding to the head's.
        """
        chosen = None if weights is None else Format.parse(weights)
        given = None if head is None else Format.parse(head)
        top = given or (chosen and _default_head(chosen))
        return Formats(chosen, top, top if embedding is None else Format.parse(embedding))

    def of(self, role: Role) -> Format | None:
        """The format for tensors of a role; vectors stay float32."""
        match role:
            case "linear":
                return self.weights
            case "head":
                return self.head
            case "embedding":
                return self.embedding
            case _:
                return F32

    def filled(self) -> Formats:
        """For a source of floats: what is not given is chosen."""
        weights = self.weights or DEFAULT_WEIGHTS
        head = self.head or _default_head(weights)
        return Formats(weights, head, self.embedding or head)


def _default_head(weights: Format) -> Format:
    if weights.bits >= 4:
        return weights
    group = weights.group if weights.granularity == "group" else 64
    return Format("integer", 4, "group", group, weights.asymmetric)


@dataclass(frozen=True)
class PlannedTensor:
    """One line of the plan. `kept` are the source's own integers, which `form` holds exactly."""

    tensor: Tensor
    form: Format
    kept: bool = False

    @property
    def weight_count(self) -> int:
        return math.prod(self.tensor.shape)

    @property
    def byte_count(self) -> int:
        return sum(part.byte_count for part in parts_of(self.form, self.tensor.shape).values())

    @property
    def bits_per_weight(self) -> float:
        """Bits with scales, zeros and padding."""
        return 8 * self.byte_count / self.weight_count


@dataclass(frozen=True)
class Plan:
    """All tensors of a graph with their formats."""

    tensors: tuple[PlannedTensor, ...]

    @property
    def byte_count(self) -> int:
        return sum(tensor.byte_count for tensor in self.tensors)

    @property
    def weight_count(self) -> int:
        """Values to encode, constants included."""
        return sum(tensor.weight_count for tensor in self.tensors)

    @property
    def parameter_count(self) -> int:
        return sum(p.weight_count for p in self.tensors if p.tensor.role != "constant")

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.byte_count / self.parameter_count

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The plan as rows of a table: alike tensors of all layers in one."""
        yield "tensor", "shape", "format", "bits", "MB", "error at most"
        for same in self._alike():
            first = same[0]
            bound = 0.0 if first.kept else first.form.error_bound
            yield (
                _series_name(first.tensor.name) + (f" (x{len(same)})" if len(same) > 1 else ""),
                "x".join(map(str, first.tensor.shape)),
                str(first.form),
                f"{first.bits_per_weight:.2f}",
                f"{sum(tensor.byte_count for tensor in same) / 1e6:.2f}",
                f"{100 * bound:.3g} % of the group's largest" if bound else "none",
            )
        total = f"{self.byte_count / 1e6:.2f}"
        yield "all", f"{self.parameter_count:,}", "", f"{self.bits_per_weight:.2f}", total, ""

    def _alike(self) -> list[list[PlannedTensor]]:
        alike: dict[tuple[str, tuple[int, ...], Format, bool], list[PlannedTensor]] = {}
        for planned in self.tensors:
            key = (
                _series_name(planned.tensor.name),
                planned.tensor.shape,
                planned.form,
                planned.kept,
            )
            alike.setdefault(key, []).append(planned)
        return list(alike.values())


def _series_name(name: str) -> str:
    """One name for the same tensor of all layers: layers.3.q -> layers.*.q."""
    return "layers.*." + name.split(".", 2)[2] if name.startswith("layers.") else name


def make_plan(graph: Graph, formats: Formats, stored: Mapping[str, Format] | None = None) -> Plan:
    """Choose each tensor's format by its role.

    `stored` is the source's own format of a matrix, for roles whose format is not given.
    """
    if stored is None:
        formats, stored = formats.filled(), {}
    return Plan(
        tuple(
            PlannedTensor(t, formats.of(t.role) or stored.get(t.name, DEFAULT_WEIGHTS))
            for t in graph.tensors
        )
    )
