"""The skel library: what it is made of, and that it refuses what it must, by name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edge.errors import CallRefused, UnknownTarget
from edge.formats import Format
from edge.target import HVX_VERSIONS
from npu.hvx import build, elf, fastrpc, protocol, skel
from npu.hvx.protocol import Call, Fault, Method, Place, input_place, output_place
from tests.npu.hvx import phone


@pytest.fixture(scope="module")
def session() -> Iterator[fastrpc.Session]:
    phone.require_standin()
    with phone.opened() as made:
        yield made


@pytest.mark.parametrize("version", [HVX_VERSIONS[1], HVX_VERSIONS[-1]])
def test_a_library_is_of_its_version_and_has_the_entry(tmp_path, version: int) -> None:
    pytest.importorskip("ziglang", reason="Hexagon code is linked by it")
    path = skel.library(version, [Format.parse("w2g64")], tmp_path)
    assert path.name == f"liblutra_v{version}_skel.so"
    assert elf.version_of(path) == version
    assert f"\0{protocol.ENTRY}\0".encode() in path.read_bytes()


def test_what_a_device_may_lack_is_all_that_a_library_misses(tmp_path) -> None:
    """Functions of the device's system are looked up weakly; any other is not to be needed."""
    pytest.importorskip("ziglang", reason="Hexagon code is linked by it")
    objects = skel.objects(73, [Format.parse("w4g64a"), Format.parse("w8g64")])
    build.shared(objects, tmp_path / "made.so")  # the linker refuses undefined names


def test_an_unknown_version_is_refused(tmp_path) -> None:
    with pytest.raises(UnknownTarget, match="Hexagon v70: no code"):
        skel.library(70, [], tmp_path)


def zeros(count: int) -> np.ndarray:
    return np.zeros(count, np.uint8)


def words(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint32)


def whole(call: Call) -> Call:
    """The call that works, with what `call` says instead."""
    arguments = {"values": input_place(0), "tables": output_place(0), "blocks": 1}
    return Call(call.kernel, arguments | dict(call.arguments), call.parts)


def refused(session: fastrpc.Session, *calls: Call, tables: int = 2048) -> CallRefused:
    outputs = [zeros(tables)]
    with pytest.raises(CallRefused) as found:
        session.run([whole(call) for call in calls], [zeros(512)], outputs)
    assert not outputs[0].any()
    return found.value


def test_the_call_that_works(session: fastrpc.Session) -> None:
    values, made = np.full(256, 7, np.int16), zeros(2048)
    session.run([whole(Call("hvx_tables", {}))], [values], [made])
    assert made.view(np.int16).max() == 28


CALLS = {
    "a short input": ({"blocks": 2}, Fault.RANGE, "values: got 512, need 1024"),
    "an offset that leaves too little": (
        {"values": input_place(0, 128)},
        Fault.RANGE,
        "values: got 512, need 640",
    ),
    "an offset beyond the end": ({"values": input_place(0, 4000)}, Fault.RANGE, "values"),
    "an offset that wraps": ({"tables": output_place(0, 2**32 - 128)}, Fault.RANGE, "tables"),
    "a misaligned output": ({"tables": output_place(1, 4)}, Fault.MISALIGNED, "tables"),
    "a missing input": ({"values": input_place(5)}, Fault.BUFFER, "values"),
    "the request as an input": ({"values": Place(2 << 24 | 0xFFFFFF)}, Fault.BUFFER, "values"),
    "no reference": ({"values": Place(0)}, Fault.BUFFER, "values"),
    "an unknown kind of reference": ({"values": Place(7 << 24)}, Fault.BUFFER, "values"),
    "a handle never given": ({"values": Place(1 << 24 | 9)}, Fault.BUFFER, "values"),
    "an output into an input": ({"tables": input_place(0)}, Fault.READ_ONLY, "tables"),
    "no blocks": ({"blocks": 0}, Fault.NUMBER, "blocks: got 0, need 1"),
    "too many blocks": ({"blocks": 1 << 40}, Fault.NUMBER, "blocks"),
    "fewer than no blocks": ({"blocks": -1}, Fault.NUMBER, "blocks"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_malformed_call_is_refused_by_name(session: fastrpc.Session, name: str) -> None:
    arguments, fault, text = CALLS[name]
    outputs = [zeros(2048), zeros(4096)]
    with pytest.raises(CallRefused) as found:
        session.run([whole(Call("hvx_tables", arguments))], [zeros(512)], outputs)
    assert found.value.code == fault, found.value
    assert "call 0, hvx_tables" in found.value.what
    assert text in found.value.what
    assert fault.name in found.value.what
    assert found.value.cure


def test_nothing_runs_where_a_later_call_is_malformed(session: fastrpc.Session) -> None:
    made = np.zeros(1024, np.int16)
    calls = [whole(Call("hvx_tables", {})), whole(Call("hvx_tables", {"blocks": 3}))]
    with pytest.raises(CallRefused, match=r"call 1, hvx_tables, values"):
        session.run(calls, [np.ones(256, np.int16)], [made])
    assert not made.any()


@pytest.mark.parametrize("parts", [0, protocol.PARTS + 1])
def test_a_number_of_parts_out_of_bounds(session: fastrpc.Session, parts: int) -> None:
    assert refused(session, Call("hvx_tables", {}, parts)).code == Fault.NUMBER


def test_an_unknown_kernel_is_refused_by_name(session: fastrpc.Session) -> None:
    with pytest.raises(CallRefused, match=r"kernel lookup_w2g32: .*KERNEL") as found:
        session.run([Call("lookup_w2g32", {})])
    assert found.value.code == Fault.KERNEL


def test_what_is_attached_for_reading_is_not_written(session: fastrpc.Session) -> None:
    buffer = session.allocate(4096)
    place = session.attach(buffer)
    error = refused(session, Call("hvx_tables", {"tables": place}))
    assert error.code == Fault.READ_ONLY
    session.detach(place)
    assert refused(session, Call("hvx_tables", {"values": place})).code == Fault.BUFFER
    buffer.free()


METHODS = {
    "a method that is not there": (8, [], [], Fault.METHOD),
    "the largest method": (31, [zeros(4)], [], Fault.METHOD),
    "no output to describe in": (Method.DESCRIBE, [], [], Fault.COUNTS),
    "an input too many": (Method.DESCRIBE, [zeros(4)], [zeros(16)], Fault.COUNTS),
    "a short output": (Method.DESCRIBE, [], [zeros(15)], Fault.SHORT),
    "an empty output": (Method.EXPLAIN, [], [zeros(0)], Fault.SHORT),
    "a short question": (Method.ATTACH, [zeros(11)], [zeros(4)], Fault.SHORT),
    "nothing mapped": (Method.ATTACH, [words(99, 64, 0)], [zeros(4)], Fault.UNMAPPED),
    "a handle never given": (Method.DETACH, [words(1 << 24 | 5)], [], Fault.BUFFER),
    "a wrong name": (Method.FIND, [zeros(3)], [zeros(64)], Fault.KERNEL),
    "room for half an answer": (
        Method.FIND,
        [np.frombuffer(b"hvx_split", np.uint8)],
        [zeros(8)],
        Fault.SHORT,
    ),
    "no request": (Method.RUN, [], [zeros(64)], Fault.COUNTS),
    "too many inputs": (Method.RUN, [zeros(64)] * 17, [], Fault.COUNTS),
    "half a request": (Method.RUN, [zeros(4)], [], Fault.REQUEST),
    "a request with a rest": (Method.RUN, [zeros(16)], [], Fault.REQUEST),
    "fewer calls than it says": (Method.RUN, [words(1, 0)], [], Fault.REQUEST),
    "a call without its slots": (Method.RUN, [words(1, 0, 0, 1)], [], Fault.REQUEST),
    "a kernel's number that is not there": (Method.RUN, [words(1, 0, 99, 1)], [], Fault.KERNEL),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_malformed_message_is_refused(session: fastrpc.Session, name: str) -> None:
    method, inputs, outputs, fault = METHODS[name]
    with pytest.raises(CallRefused) as found:
        session.invoke(method, inputs, outputs)
    assert found.value.code == fault, found.value


def test_a_misaligned_request_is_refused(session: fastrpc.Session) -> None:
    buffer = session.allocate(64)
    with pytest.raises(CallRefused, match="MISALIGNED"):
        session.invoke(Method.RUN, [buffer.array(np.uint8, (8,), 4)], [])
    buffer.free()


def test_handles_where_none_belong_are_refused(session: fastrpc.Session) -> None:
    arrays = [zeros(16) for _ in range(4)]
    arguments = session.arguments(arrays, [])
    for word in (0x02000011, 0x02000111, 0x06010010, 0x00020000, 0x01000001):
        with pytest.raises(CallRefused, match="COUNTS"):
            session.invoke_raw(word, arguments)


def test_a_closed_session_and_too_many_are_refused(session: fastrpc.Session) -> None:
    more = [phone.opened() for _ in range(protocol.SESSIONS - 1)]
    with pytest.raises(CallRefused, match="FULL"):
        phone.opened()
    old = more[0].handle
    more.pop(0).close()
    more.append(phone.opened())
    current, more[-1].handle = more[-1].handle, old
    with pytest.raises(CallRefused, match="SESSION"):
        more[-1].run([])
    more[-1].handle = current
    for each in more:
        each.close()
    session.run([])


def test_every_fault_has_a_cause_and_a_cure() -> None:
    assert set(protocol.FAULTS) == set(Fault)
    assert all(cause and cure for cause, cure in protocol.FAULTS.values())
