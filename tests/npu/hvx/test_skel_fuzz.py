"""Calls that nobody would make, to a skel whose buffers end where nothing is mapped.

Each is checked against the contracts in Python: the skel must refuse exactly what they forbid, with
the fault that they imply, and what is allowed must change nothing but what it may write. A skel
that reads or writes beyond the end of a buffer ends the emulated device, and with it the test.

One round of calls each, or as many as take LUTRA_FUZZ_SECONDS in all.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.errors import CallRefused
from edge.formats import Format
from npu.hvx import fastrpc, protocol
from npu.hvx.contract import Contract, Memory, Whole
from npu.hvx.contracts import families
from npu.hvx.protocol import Argument, Call, Fault, Method, Place, input_place, output_place
from tests.npu.hvx import phone

FORMATS = (*phone.FORMATS, "f16")
CONTRACTS = [each for family in families(map(Format.parse, FORMATS)) for each in family]

# A test's share of the time that is given.
_SECONDS = float(os.environ.get("LUTRA_FUZZ_SECONDS", "0")) / 3

# Whole pages of the emulator, so that the end of a buffer is where nothing is mapped.
_BYTES = 1 << 16

_STRANGE = (0, 1, 2, 3, 31, 33, 64, 127, 128, 255, 256, 257, 1000, 65535, 2**31, 2**32, 2**62, -1)

Arrays = list[NDArray[np.uint8]]


def rounds() -> Iterator[np.random.Generator]:
    """Random numbers for a round of calls, and for more while there is time."""
    start = time.monotonic()
    for seed in count(8):
        yield np.random.default_rng(seed)
        if time.monotonic() - start >= _SECONDS:
            return


@dataclass
class Memories:
    """Everything that a call may name: what it is read from and what it is written to."""

    session: fastrpc.Session
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.buffers = [self.session.allocate(_BYTES) for _ in range(2)]
        self.arrays = [buffer.array(np.uint8, (_BYTES,)) for buffer in self.buffers]
        for array in self.arrays:
            array[:] = self.rng.integers(0, 256, _BYTES)
        first = self.session.attach(self.buffers[0])
        second = self.session.attach(self.buffers[1], writable=True)
        self.places = first, second
        self.attached = {first.reference: 0, second.reference: 1}
        sizes = (4096, 512, 20096)
        self.inputs: Arrays = [self.rng.integers(0, 256, n).astype(np.uint8) for n in sizes]
        self.outputs: Arrays = [np.zeros(n, np.uint8) for n in sizes]

    def close(self) -> None:
        for place, buffer in zip(self.places, self.buffers, strict=True):
            self.session.detach(place)
            buffer.free()

    def find(self, reference: int) -> tuple[NDArray[np.uint8] | None, bool]:
        """The memory of a reference, and whether it may be written."""
        kind, index = reference >> 24, reference & 0xFFFFFF
        if reference in self.attached:
            held = self.attached[reference]
            return self.arrays[held], held == 1
        if kind == protocol.INPUT and index < len(self.inputs):
            return self.inputs[index], False
        if kind == protocol.OUTPUT and index < len(self.outputs):
            return self.outputs[index], True
        return None, False

    def reference(self) -> int:
        known = [*self.attached, *(input_place(i).reference for i in range(3))]
        known += [output_place(i).reference for i in range(3)]
        strange = [0, 9 << 24, 1 << 24 | 77, input_place(3).reference, output_place(3).reference]
        return int(self.rng.choice(known if self.rng.random() < 0.97 else strange))


@dataclass(frozen=True)
class Made:
    """A random call, and what each of its arrays takes."""

    contract: Contract
    call: Call
    needs: dict[str, int]


# What is mostly less than 300, so that calls fit the buffers.
_SMALL = {"tiles": 4, "blocks": 4, "kv_heads": 3, "heads": 8, "head_dim": 70, "half": 40}
_SMALL |= {"capacity": 40, "position": 40, "padded_dim": 200, "scratch_stride": 9000}
_SMALL |= {"vocabulary": 200, "width": 300, "outputs": 80, "groups": 12, "steps": 40}


def integers(rng: np.random.Generator, contract: Contract) -> dict[str, int]:
    """Mostly small ones, which kernels take, and now and then any."""
    chosen = {}
    for name, slot in contract.slots.items():
        if isinstance(slot, Whole):
            small = int(rng.integers(slot.least, min(slot.most, slot.least + 300) + 1))
            if name in _SMALL:
                small = int(rng.integers(slot.least, min(slot.most, _SMALL[name]) + 1))
            chosen[name] = small if rng.random() < 0.99 else int(rng.choice(_STRANGE))
    return chosen


def made(memories: Memories) -> Made:
    rng = memories.rng
    contract = CONTRACTS[rng.integers(len(CONTRACTS))]
    whole = integers(rng, contract)
    parts = int(rng.integers(1, 5)) if rng.random() < 0.98 else int(rng.choice((0, 64, 65, 9999)))
    bounds = {name: slot for name, slot in contract.slots.items() if isinstance(slot, Whole)}
    fits = all(slot.least <= whole[name] <= slot.most for name, slot in bounds.items())
    needs = contract.bytes_of(whole, parts) if fits else {}
    arguments: dict[str, Argument] = dict(whole)
    for name, slot in contract.slots.items():
        if isinstance(slot, Memory):
            arguments[name] = place(memories, slot, needs.get(name, 0))
    return Made(contract, Call(contract.kernel.name, arguments, parts), needs)


def place(memories: Memories, slot: Memory, need: int) -> Place:
    """Somewhere: often the last place where it fits, and sometimes just behind that."""
    rng = memories.rng
    reference = memories.reference()
    if slot.written and rng.random() < 0.9:
        reference = int(rng.choice([*list(memories.attached)[1:], output_place(2).reference]))
    array, _ = memories.find(reference)
    last = max((0 if array is None else array.size) - need, 0)
    at = last if rng.random() < 0.3 else int(rng.integers(0, last + 1))
    at -= at % slot.alignment
    if rng.random() < 0.02:
        at += int(rng.choice((1, 2, 4, 64, 128, 4096, 2**31)))
    return Place(reference, at)


def wanted(memories: Memories, made: Made) -> set[Fault]:
    """Faults that the contract implies; none where the call is to run."""
    call = made.call
    faults = set()
    if not 1 <= call.parts <= protocol.PARTS:
        faults.add(Fault.NUMBER)
    if not made.needs:
        faults.add(Fault.NUMBER)
    spans: list[tuple[int, int, int, bool]] = []
    for name, need in made.needs.items():
        slot, at = made.contract.slots[name], call.arguments[name]
        assert isinstance(slot, Memory)
        assert isinstance(at, Place)
        if not need:
            continue
        array, writable = memories.find(at.reference)
        if array is None:
            faults.add(Fault.BUFFER)
            continue
        if slot.written and not writable:
            faults.add(Fault.READ_ONLY)
        if at.offset + need > array.size:
            faults.add(Fault.RANGE)
        if at.offset % slot.alignment:
            faults.add(Fault.MISALIGNED)
        spans.append((at.reference, at.offset, at.offset + need, slot.written))
    for index, (reference, first, last, written) in enumerate(spans):
        for other, (place, begin, end, _) in enumerate(spans):
            if written and other != index and place == reference and first < end and begin < last:
                faults.add(Fault.OVERLAP)
    return faults


@pytest.fixture(scope="module")
def session() -> Iterator[fastrpc.Session]:
    phone.require_standin()
    with phone.opened(1, FORMATS) as opened:
        yield opened


def fault_of(invoke: Callable[[], None]) -> int:
    """The skel's fault, 0 where there is none. Anything else that went wrong is an error."""
    try:
        invoke()
    except CallRefused as error:
        if error.code not in set(Fault):
            raise
        return error.code
    return 0


def may_change(memories: Memories, made: Made, array: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Bytes of a writable memory that the call may write."""
    mask = np.zeros(array.size, bool)
    for name, need in made.needs.items():
        slot, at = made.contract.slots[name], made.call.arguments[name]
        assert isinstance(slot, Memory)
        assert isinstance(at, Place)
        if slot.written and need and memories.find(at.reference)[0] is array:
            mask[at.offset : at.offset + need] = True
    return mask


def test_calls_do_what_the_contracts_say(session: fastrpc.Session) -> None:
    refused, ran = set[int](), Counter[str]()
    for rng in rounds():
        memories = Memories(session, rng)
        make_calls(memories, refused, ran)
        memories.close()
    assert ran.total() > 400
    assert all(ran[each.kernel.name] for each in CONTRACTS), ran
    assert refused == {
        0,
        *(Fault.NUMBER, Fault.BUFFER, Fault.READ_ONLY, Fault.RANGE, Fault.MISALIGNED),
        Fault.OVERLAP,
    }


def make_calls(memories: Memories, refused: set[int], ran: Counter[str]) -> None:
    """A round of calls; adds faults that there were, and kernels that ran."""
    session = memories.session
    for _ in range(2500):
        random = made(memories)
        faults = wanted(memories, random)
        writable = [memories.arrays[1], *memories.outputs]
        for output in memories.outputs:
            output[:] = 0  # what a device finds there
        before = [array.copy() for array in (*writable, memories.arrays[0])]
        fault = fault_of(
            lambda call=random.call: session.run([call], memories.inputs, memories.outputs)
        )
        assert fault in faults if faults else not fault, (random, fault, faults)
        refused.add(fault)
        ran[random.call.kernel] += not fault
        for array, held in zip(writable, before, strict=False):
            mask = may_change(memories, random, array) & (not faults)
            np.testing.assert_array_equal(array[~mask], held[~mask], str(random))
        np.testing.assert_array_equal(memories.arrays[0], before[-1])


def test_requests_of_random_bytes(session: fastrpc.Session) -> None:
    """Words that a request has, anywhere in it, and requests cut anywhere."""
    for rng in rounds():
        memories = Memories(session, rng)
        send_requests(memories)
        memories.close()


def send_requests(memories: Memories) -> None:
    session, rng = memories.session, memories.rng
    ran = 0
    for _ in range(1500):
        calls = [made(memories).call for _ in range(int(rng.integers(1, 4)))]
        signatures = {call.kernel: session.signature(call.kernel) for call in calls}
        request = np.frombuffer(protocol.request(calls, signatures), np.uint8).copy()
        for _ in range(int(rng.integers(0, 4))):
            at = int(rng.integers(request.size // 4)) * 4
            request[at : at + 4] = rng.integers(0, 256, 4)
        if rng.random() < 0.3:
            request = request[: int(rng.integers(request.size + 1))].copy()
        before = memories.arrays[0].copy()
        message = Method.RUN, [request, *memories.inputs], memories.outputs
        ran += not fault_of(lambda given=message: session.invoke(*given))
        np.testing.assert_array_equal(memories.arrays[0], before)
    assert ran > 20


def test_messages_of_any_kind(session: fastrpc.Session) -> None:
    """Any method with any number of buffers of any length: a named fault, or an answer."""
    for rng in rounds():
        send_messages(session, rng)
    session.run([])


def send_messages(session: fastrpc.Session, rng: np.random.Generator) -> None:
    for _ in range(1500):
        method = int(rng.integers(2, 32)) if rng.random() < 0.2 else int(rng.integers(2, 8))
        counts = rng.integers(0, 4, 2) if rng.random() < 0.9 else rng.integers(0, 30, 2)
        arrays = [
            rng.integers(0, 256, int(rng.integers(0, 80))).astype(np.uint8) for _ in range(64)
        ]
        inputs, outputs = arrays[: counts[0]], arrays[32 : 32 + counts[1]]
        message = method, inputs, outputs
        fault_of(lambda given=message: session.invoke(*given))
