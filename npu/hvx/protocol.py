"""What the host and the device say to each other: methods, faults, and a request's bytes.

A method's number and the counts of its buffers are packed into one word, as FastRPC has it. A run's
first input is the request: the number of calls, 0, then for every call the kernel's index, its
number of parts, and 8 bytes for every slot: an integer, a float32 in the low half, or a place,
which is a buffer's reference (32 bits) and an offset (32 bits). Nothing here needs more than the
standard library.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

# Both sides must have the same.
VERSION = 1

ENTRY = "lutra_skel_handle_invoke"

# What a buffer's address must be a multiple of where vectors are in it.
ALIGNMENT_BYTES = 128

# The most of each that a device keeps, or a call may have.
SESSIONS = 4
BUFFERS = 128
ARGUMENTS = 16
SLOTS = 32
PARTS = 64


class Method(IntEnum):
    """The first two are FastRPC's own."""

    OPEN = 0
    CLOSE = 1
    DESCRIBE = 2
    ATTACH = 3
    DETACH = 4
    FIND = 5
    RUN = 6
    EXPLAIN = 7


class Fault(IntEnum):
    """Why the device refused a call. The numbers are none of FastRPC's own errors."""

    METHOD = 0x4C01
    COUNTS = 0x4C02
    SESSION = 0x4C03
    SHORT = 0x4C04
    REQUEST = 0x4C05
    KERNEL = 0x4C06
    BUFFER = 0x4C07
    MISALIGNED = 0x4C08
    RANGE = 0x4C09
    READ_ONLY = 0x4C0A
    NUMBER = 0x4C0B
    FULL = 0x4C0C
    UNMAPPED = 0x4C0D
    BUSY = 0x4C0E
    OVERLAP = 0x4C0F


# What each means, and what to do.
FAULTS: Mapping[Fault, tuple[str, str]] = {
    Fault.METHOD: ("no such method", "build the skel library and Lutra from one version"),
    Fault.COUNTS: ("a wrong number of buffers for the method", "pass what the method takes"),
    Fault.SESSION: ("no open session has this handle", "open one, and use it until it is closed"),
    Fault.SHORT: ("a buffer is too short", "make it as long as the method says"),
    Fault.REQUEST: ("the request's length is not that of its calls", "send whole calls"),
    Fault.KERNEL: ("no kernel of this name or number", "build the skel with the bundle's formats"),
    Fault.BUFFER: ("no such buffer", "attach it first, or pass it with the call"),
    Fault.MISALIGNED: ("an address is not aligned", "place it at a multiple of 128 bytes"),
    Fault.RANGE: ("a kernel would leave the buffer", "give the array the bytes that it needs"),
    Fault.READ_ONLY: ("a kernel would write to what may only be read", "attach it as writable"),
    Fault.NUMBER: ("an integer is out of its bounds", "give one that the kernel takes"),
    Fault.FULL: ("no room for one more", "close a session or detach a buffer"),
    Fault.UNMAPPED: ("the buffer is not mapped on the device", "map its descriptor first"),
    Fault.OVERLAP: ("a kernel would write over another array", "give each array its own bytes"),
    Fault.BUSY: ("another call is running", "make one call at a time"),
}

# Kinds of references to buffers, in their high byte.
_KIND_SHIFT = 24
ATTACHED, INPUT, OUTPUT = 1, 2, 3


@dataclass(frozen=True)
class Place:
    """`offset` bytes into the buffer with this reference."""

    reference: int
    offset: int = 0


NOWHERE = Place(0)


def input_place(index: int, offset: int = 0) -> Place:
    """A place in a run's input `index`, counted from 0 without the request."""
    return Place(INPUT << _KIND_SHIFT | index, offset)


def output_place(index: int, offset: int = 0) -> Place:
    """A place in a run's output `index`."""
    return Place(OUTPUT << _KIND_SHIFT | index, offset)


@dataclass(frozen=True)
class Signature:
    """A kernel on the device: its index, and its slots' names with their kinds.

    Kinds are "r" and "w" for places that are read and written, "i" for integers, "n" for numbers.
    """

    index: int
    slots: Mapping[str, str]

    @staticmethod
    def parse(answer: bytes) -> Signature:
        """Read what FIND answers: the index, then `kind:name` for every slot, and a 0."""
        (index,) = struct.unpack_from("<I", answer)
        pairs = (word.split(":") for word in answer[4 : answer.index(0, 4)].decode().split())
        return Signature(index, {name: kind for kind, name in pairs})


Argument = int | float | Place


@dataclass(frozen=True)
class Call:
    """One kernel's run: its arguments by slot, and the number of parts its work is cut into."""

    kernel: str
    arguments: Mapping[str, Argument]
    parts: int = 1


def scalars(method: int, inputs: int, outputs: int) -> int:
    """The word that says what a call is: its method, and how many buffers it has."""
    return method << 24 | inputs << 16 | outputs << 8


def request(calls: Sequence[Call], signatures: Mapping[str, Signature]) -> bytes:
    """A run's calls as bytes. Slots that a call leaves out are 0, or nowhere."""
    made = [struct.pack("<2I", len(calls), 0)]
    for call in calls:
        signature = signatures[call.kernel]
        made.append(struct.pack("<2I", signature.index, call.parts))
        for name, kind in signature.slots.items():
            made.append(_slot(kind, call.arguments.get(name, NOWHERE if kind in "rw" else 0)))
    return b"".join(made)


def _slot(kind: str, value: Argument) -> bytes:
    if isinstance(value, Place):
        return struct.pack("<2I", value.reference, value.offset)
    return struct.pack("<fI", value, 0) if kind == "n" else struct.pack("<q", int(value))


def header() -> str:
    """The numbers of this file as C."""
    numbers = {
        "VERSION": VERSION,
        "SESSIONS": SESSIONS,
        "BUFFERS": BUFFERS,
        "ARGUMENTS": ARGUMENTS,
        "SLOTS": SLOTS,
        "PARTS": PARTS,
        "ATTACHED": ATTACHED,
        "INPUT": INPUT,
        "OUTPUT": OUTPUT,
    }
    numbers |= {f"METHOD_{method.name}": int(method) for method in Method}
    numbers |= {f"FAULT_{fault.name}": int(fault) for fault in Fault}
    return "\n".join(f"#define {name} {number}u" for name, number in numbers.items()) + "\n"
