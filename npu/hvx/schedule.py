"""Packets by hand: a loop's vector operations laid out by modulo scheduling, with registers.

LLVM's scheduler leaves a third of the issue slots of the lookup loops empty and spills (9 packets
and more for 1,000 2-bit weights). Here every operation of a loop's turn gets a packet, counted from
the turn's start; a turn begins every `length` packets, so the last operations of one run beside the
first of the next. Operations keep to four units (see `isa`), four instructions, one load and one
store a packet; the assembler checks each packet again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["both_lookup", "multiply", "shift", "permute", "any", "none", "alone"]

# Ways in which an operation of a kind takes units: multipliers M and N, shifter S, permuter P.
_WAYS: dict[Kind, tuple[str, ...]] = {
    "both_lookup": ("SP",),
    "multiply": ("MN",),
    "shift": ("S",),
    "permute": ("P",),
    "any": (),
    "none": ("",),
    "alone": ("MNSP",),  # beside scalars alone
}

# What reads its sources early, so that a result of the packet before may not have come. Sums that
# it adds to are read later. In LLVM's itineraries of HVX (HexagonDepIICHVX.td), for all versions, a
# result comes in stage 9, early sources are read in stage 5 and others in 7; halved as its
# scheduler does, since threads take turns, a result is there for the next packet or the one after.
_EARLY: tuple[Kind, ...] = ("both_lookup", "multiply", "shift", "permute")
EARLY_LATENCY = 2

# Vector registers; the last is where loads for use in the same packet pass through.
REGISTERS = 32
PASSING = REGISTERS - 1

_SLOTS = 4

# Packets from which registers are given out, one after another until all fit.
_CUTS = 12

# Places by which shuffling moves an operation, at most.
_SPREAD = 6


@dataclass(eq=False)
class Register:
    """A vector register, or an aligned pair of them, that one turn writes and reads."""

    pair: bool = False
    number: int = -1

    @property
    def whole(self) -> str:
        return f"v{self.number + 1}:{self.number}" if self.pair else f"v{self.number}"


@dataclass(frozen=True, eq=False)
class Half:
    """One vector of a pair."""

    of: Register
    index: int

    @property
    def whole(self) -> str:
        return f"v{self.of.number + self.index}"


@dataclass(frozen=True)
class Fixed:
    """A register that holds the same in all turns."""

    number: int

    @property
    def whole(self) -> str:
        return f"v{self.number}"


@dataclass(frozen=True)
class Pointer:
    """A scalar register that addresses vectors, moved once a turn after its last use or never."""

    name: str


@dataclass(frozen=True)
class Access:
    """A vector in memory: so many, from -8 to 7, from where a pointer points."""

    pointer: Pointer
    place: int = 0

    @property
    def address(self) -> str:
        return f"{self.pointer.name}+#{self.place}"


Source = Register | Half | Fixed


@dataclass(eq=False)
class Operation:
    """An instruction. `text` names {d}, what it writes, and {0}, {1} ..., what it reads.

    `passing` is what it loads for itself, {m}. Those that add to what they write, or to a half of
    it, read that first and have `adds`.
    A `late` one runs in the turn that follows. A `companion` runs in the same packet, and may use
    what is loaded in passing. It may move a pointer on, after its other users.
    """

    text: str
    kind: Kind
    writes: Register | None = None
    reads: tuple[Source, ...] = ()
    passing: Access | None = None
    access: Access | None = None
    moves: Pointer | None = None
    adds: bool = False
    late: bool = False
    companion: Operation | None = None
    time: int = -1

    @property
    def parts(self) -> list[Operation]:
        """This and its companion."""
        return [self] if self.companion is None else [self, self.companion]

    @property
    def accesses(self) -> Iterator[str]:
        """What it does to memory, of which a packet may load and store once."""
        if self.passing is not None or (self.access is not None and self.writes is not None):
            yield "load"
        elif self.access is not None:
            yield "store"

    def lines(self) -> Iterator[str]:
        """The instructions, loads for itself last."""
        names = [source.whole for source in self.reads]
        written = self.writes.whole if self.writes is not None else ""
        address = self.access.address if self.access is not None else ""
        yield self.text.format(*names, d=written, m=f"v{PASSING}", a=address)
        if self.passing is not None:
            yield f"v{PASSING}.tmp = vmem({self.passing.address})"


class DoesNotFit(Exception):
    """Not enough registers, or packets."""


@dataclass
class _Packet:
    order: str
    units: str = ""
    instructions: int = 0
    accesses: set[str] = field(default_factory=set)

    def takes(self, operation: Operation) -> bool:
        """Add an operation, and its companion, where there is room for both."""
        parts = operation.parts
        accesses = {kind for part in parts for kind in part.accesses}
        count = len(parts) + sum(part.passing is not None for part in parts)
        if self.instructions + count > _SLOTS or accesses & self.accesses:
            return False
        units = self.units
        for part in parts:
            choices = _WAYS[part.kind] or tuple(self.order)
            ways = [way for way in choices if not set(way) & set(units)]
            if not ways:
                return False
            units += ways[0]
        self.units, self.instructions = units, self.instructions + count
        self.accesses |= accesses
        return True


@dataclass
class Loop:
    """Operations of a turn, in an order in which they may run; `late` ones run in the next turn.

    `free` are the registers for values; at most `ahead` operations past the oldest one that waits
    are looked at, which bounds how many values there are at a time. Operations that take any unit
    let the others go first, for `patience` packets; they take `units` in that order. Sources that
    are read early were made `latency` packets before, or more. At most `limit` registers are used.
    More than `most` packets are given up. Unless `shuffle` is 0, which of several ready operations
    goes first is drawn by chance with that seed, from those near each other in the order.
    """

    operations: Sequence[Operation]
    free: Sequence[int]
    ahead: int
    patience: int
    units: str
    latency: int
    limit: int
    shuffle: int = 0
    most: int = 10_000
    length: int = 0

    def schedule(self) -> None:
        """Give every operation a packet and every register a number. Raises DoesNotFit."""
        companions = {op.companion for op in self.operations if op.companion is not None}
        late = [op for op in self.operations if op.late and op not in companions]
        early = [op for op in self.operations if not op.late and op not in companions]
        pressure = _Pressure(self.operations, self.limit)
        order = _Order(self.operations, _waits(self.operations, self.latency))
        places = self._places()
        ready_since: dict[Operation, int] = {}
        time = placed = 0
        while late or early:
            packet = _Packet(self.units)
            ready = [op for op in late + early[: self.ahead] if order.ready(op, time)]
            for op in ready:
                ready_since.setdefault(op, time)
            ready.sort(
                key=lambda op: (
                    op.kind == "any" and time - ready_since[op] < self.patience,
                    not op.late,
                    places[op],
                )
            )
            for op in ready:
                if pressure.allows(op) and packet.takes(op):
                    placed = time
                    for part in op.parts:
                        part.time = time
                        pressure.place(part)
                        order.place(part)
            late = [op for op in late if op.time < 0]
            early = [op for op in early if op.time < 0]
            time += 1
            if time - placed > self.latency:
                raise DoesNotFit("operations wait for registers that never become free")
            if time > self.most:
                raise DoesNotFit(f"more than {self.most} packets")
        self.length = time
        for operation in self.operations:
            operation.time += self.length * operation.late
        _Allocation(self).run()

    def cycles(self) -> int:
        """Packets of a turn and what they wait for each other, once turns follow one another."""
        waits = _waits(self.operations, EARLY_LATENCY)
        turns = 4
        begun = [0] * (turns + 1) * self.length
        after: list[list[tuple[int, int]]] = [[] for _ in begun]
        for operation in self.operations:
            for other, wait in waits[operation]:
                if other.writes is not None:
                    for turn in range(0, turns * self.length, self.length):
                        after[turn + operation.time].append((turn + other.time, wait))
        for index in range(1, len(begun)):
            ready = [begun[other] + wait for other, wait in after[index]]
            begun[index] = max([begun[index - 1] + 1, *ready])
        last = (turns - 1) * self.length
        return begun[last] - begun[last - self.length]

    def _places(self) -> dict[Operation, float]:
        """Where operations are in the order, some a little further on."""
        chance, spread = random.Random(self.shuffle), _SPREAD if self.shuffle else 0  # noqa: S311
        return {op: at + spread * chance.random() for at, op in enumerate(self.operations)}

    def packets(self, *, this: bool = True, before: bool = True) -> list[list[str]]:
        """Instructions by packet: those of this turn, and those left over of the turn before."""
        made: list[list[str]] = [[] for _ in range(self.length)]
        for operation in self.operations:
            late = operation.time >= self.length
            if (before and late) or (this and not late):
                made[operation.time % self.length] += operation.lines()
        return made


class _Order:
    """What operations, with their companions, still wait for, as others are placed."""

    def __init__(
        self,
        operations: Sequence[Operation],
        waits: Mapping[Operation, Sequence[tuple[Operation, int]]],
    ) -> None:
        self.lacking = dict.fromkeys(operations, 0)
        self.earliest = dict.fromkeys(operations, 0)
        self.after: dict[Operation, list[tuple[Operation, int]]] = {op: [] for op in operations}
        for operation in operations:
            for part in operation.parts:
                for other, wait in waits[part]:
                    # the turn before ends before this one begins
                    if other is not operation and (other.late or not part.late):
                        self.lacking[operation] += 1
                        self.after[other].append((operation, wait))

    def ready(self, operation: Operation, now: int) -> bool:
        return not self.lacking[operation] and self.earliest[operation] <= now

    def place(self, operation: Operation) -> None:
        for other, wait in self.after[operation]:
            self.lacking[other] -= 1
            self.earliest[other] = max(self.earliest[other], operation.time + wait)


def _waits(
    operations: Sequence[Operation], latency: int
) -> dict[Operation, list[tuple[Operation, int]]]:
    """What an operation comes after, and by how many packets: values, and moves of pointers."""
    waits: dict[Operation, list[tuple[Operation, int]]] = {op: [] for op in operations}
    writers: dict[Register, list[Operation]] = {}
    users: dict[Pointer, list[Operation]] = {}
    for operation in operations:
        for register in _registers(operation):
            wait = latency if _early(operation, register) else 1
            waits[operation] += [(other, wait) for other in writers[register]]
        if operation.writes is not None:
            writers.setdefault(operation.writes, []).append(operation)
        for access in (operation.passing, operation.access):
            if access is not None:
                users.setdefault(access.pointer, []).append(operation)
        if operation.moves is not None:
            for user in users[operation.moves]:
                if user.late == operation.late:
                    waits[operation].append((user, 0))
                else:  # the move that ends the turn before
                    waits[user].append((operation, 1))
    return waits


def _early(operation: Operation, register: Register) -> bool:
    """Whether an operation reads a register early, which it does not what it adds to."""
    summed = operation.adds and register not in map(_whole, operation.reads[1:])
    stored = operation.access is not None and operation.writes is None
    return (operation.kind in _EARLY and not summed) or stored


def _registers(operation: Operation) -> Iterator[Register]:
    """What an operation reads of what this turn writes."""
    yield from filter(None, map(_whole, operation.reads))


def _whole(source: Source) -> Register | None:
    """The register, or the one that a half is of; none where it is the same in all turns."""
    if isinstance(source, Fixed):
        return None
    return source.of if isinstance(source, Half) else source


class _Pressure:
    """How many registers hold values, as operations are placed one after another."""

    def __init__(self, operations: Sequence[Operation], limit: int) -> None:
        self.limit = limit
        self.reads: dict[Register, int] = {}
        for operation in operations:
            for register in _registers(operation):
                self.reads[register] = self.reads.get(register, 0) + 1
        self.written: set[Register] = set()
        # what the turn before leaves: written by operations that are not late, read by late ones
        early = {op.writes for op in operations if op.writes is not None and not op.late}
        left = {r for op in operations if op.late for r in _registers(op) if r in early}
        self.carried = left
        self.left_reads = {
            r: sum(r in _registers(op) for op in operations if op.late) for r in left
        }
        self.live = sum(_width(register) for register in left)

    def allows(self, operation: Operation) -> bool:
        """Whether there are registers for what an operation writes; adding to it needs no new."""
        new = {p.writes for p in operation.parts if p.writes is not None} - self.written
        return self.live + sum(_width(register) for register in new) <= self.limit

    def place(self, operation: Operation) -> None:
        for register in _registers(operation):
            if operation.late and register in self.carried:
                self.left_reads[register] -= 1
                if not self.left_reads[register]:
                    self.live -= _width(register)
            self.reads[register] -= 1
            if not self.reads[register] and register not in self.carried:
                self.live -= _width(register)
        if operation.writes is not None and operation.writes not in self.written:
            self.written.add(operation.writes)
            if not (operation.late and operation.writes in self.carried):
                self.live += _width(operation.writes)


def _width(register: Register) -> int:
    return 2 if register.pair else 1


class _Allocation:
    """Numbers for registers: each is taken from the packet after it is written to its last use."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.spans: dict[Register, tuple[int, int]] = {}
        for operation in loop.operations:
            if operation.writes is not None:
                start, end = self.spans.get(operation.writes, (operation.time, 0))
                # none other may write it in the same packet
                self.spans[operation.writes] = (
                    min(start, operation.time),
                    max(end, operation.time + 1),
                )
            for register in _registers(operation):
                start, end = self.spans[register]
                self.spans[register] = start, max(end, operation.time)
        self.taken: dict[int, int] = {}

    def run(self) -> None:
        """Raises DoesNotFit. What a greedy order leaves no room for, another may."""
        length = self.loop.length
        if any(end - start > length for start, end in self.spans.values()):
            raise DoesNotFit("a value lives longer than a turn")
        if not any(self._fits(cut * length // _CUTS) for cut in range(_CUTS)):
            raise DoesNotFit("no registers")

    def _fits(self, cut: int) -> bool:
        """Whether all get one, pairs first, then by when they begin, counted from a packet on."""
        length = self.loop.length
        self.taken = dict.fromkeys(self.loop.free, 0)
        return all(
            self._number(register, *self.spans[register])
            for register in sorted(
                self.spans, key=lambda r: (not r.pair, (self.spans[r][0] - cut) % length)
            )
        )

    def _number(self, register: Register, start: int, end: int) -> bool:
        """Take the fullest that is free from one packet to the one before another."""
        length = self.loop.length
        span = ((1 << end - start) - 1) << start % length
        times = (span | span >> length) & ((1 << length) - 1)
        fullest = -1
        for number in self.loop.free:
            other = number + 1 if register.pair else number
            if register.pair and (number % 2 or other not in self.taken):
                continue
            taken = self.taken[number], self.taken[other]
            fullness = sum(bits.bit_count() for bits in taken)
            if fullness > fullest and not (taken[0] | taken[1]) & times:
                register.number, fullest = number, fullness
        if fullest < 0:
            return False
        for number in (
            (register.number, register.number + 1) if register.pair else (register.number,)
        ):
            self.taken[number] |= times
        return True
