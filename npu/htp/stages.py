"""A prefill as stages: the CPU's float ops and the NPU's pieces, for every chunk.

Between two pieces the CPU does everything in one stage, but for attention: it starts a stage of its
own, since it waits for the keys of the chunks before. While the NPU works on a piece, the CPU works
on the piece's outliers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge.graph import Attention, Graph, Op
from edge.jobs import CPU, NPU, Part, Stage
from edge.npu import NpuRecord
from edge.pieces import Piece, segments

ON_CPU, ON_NPU, OUTLIERS = Part(CPU), Part(NPU), Part(CPU, "outliers")


@dataclass(frozen=True)
class FloatWork:
    """A stage of the CPU: finish piece `after`, run `ops`, prepare piece `before`.

    With `attend`, the first op is an attention whose keys and values are in the cache already;
    with `append`, theirs are put there at the end.
    """

    stage: Stage
    ops: tuple[Op, ...]
    after: Piece | None = None
    before: Piece | None = None
    append: Attention | None = None
    attend: Attention | None = None


@dataclass(frozen=True)
class PieceWork:
    """A stage of the NPU, and of the CPU beside it where the piece has outliers to restore."""

    stage: Stage
    piece: Piece


Work = FloatWork | PieceWork


def make_stages(graph: Graph, record: NpuRecord) -> tuple[Work, ...]:
    """All stages of a chunk in order, up to the head."""
    activations = record.by_value()
    parts = segments(graph, record.float_gates)
    made: list[Work] = []
    for index, part in enumerate(parts):
        if isinstance(part, Piece):
            restored = any(activations[name].restored for name in part.inputs)
            both = (ON_NPU, OUTLIERS) if restored else (ON_NPU,)
            made.append(PieceWork(Stage(part.name, both), part))
        else:
            before = parts[index + 1] if index + 1 < len(parts) else None
            after = parts[index - 1] if index else None
            assert not isinstance(before, FloatWork)
            made += _floats(part.ops, _piece(after), _piece(before), f"float.{index}")
    return tuple(made)


def _piece(segment: object) -> Piece | None:
    return segment if isinstance(segment, Piece) else None


def _floats(
    ops: Sequence[Op], after: Piece | None, before: Piece | None, name: str
) -> list[FloatWork]:
    """One stage, or two where an attention is among the ops."""
    place = next((i for i, op in enumerate(ops) if isinstance(op, Attention)), None)
    if place is None:
        return [FloatWork(Stage(name, (ON_CPU,)), tuple(ops), after, before)]
    attention = ops[place]
    assert isinstance(attention, Attention)
    keys = Stage(f"{name}.keys", (ON_CPU,))
    rest = Stage(f"{name}.attention", (ON_CPU,), across=True)
    return [
        FloatWork(keys, tuple(ops[:place]), after, append=attention),
        FloatWork(rest, tuple(ops[place + 1 :]), before=before, attend=attention),
    ]


def needed_later(works: Sequence[Work], head: Sequence[Op]) -> list[frozenset[str]]:
    """For each stage, the values that a later one, or the head, reads."""
    needed = {name for op in head for name in op.inputs()}
    made: list[frozenset[str]] = []
    for work in reversed(works):
        made.append(frozenset(needed))
        needed |= _reads(work)
    return made[::-1]


def _reads(work: Work) -> set[str]:
    if isinstance(work, PieceWork):
        return set(work.piece.inputs)
    ops = [*work.ops, *(op for op in (work.append, work.attend) if op is not None)]
    return {name for op in ops for name in op.inputs()}
