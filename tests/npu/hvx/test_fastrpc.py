"""From Python through FastRPC's functions to a skel in an emulated Hexagon, and back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from converter.convert import convert
from edge.bundle import Bundle
from edge.errors import CallRefused, NpuUnavailable
from edge.formats import Format
from edge.graph import Linear
from edge.planes import pack, tile_count
from npu.hvx import dequantize, fastrpc, gemv, tables
from npu.hvx.elf import file_name
from npu.hvx.protocol import input_place, output_place
from npu.hvx.weights import group_of
from tests.checkpoints import make_checkpoint
from tests.cpu.harness import random_weights
from tests.npu.hvx import phone


@pytest.fixture(scope="module")
def session() -> Iterator[fastrpc.Session]:
    phone.require_standin()
    with phone.opened() as made:
        yield made


@pytest.mark.parametrize("text", phone.FORMATS)
def test_a_product_through_fastrpc_is_the_twin(session: fastrpc.Session, text: str) -> None:
    check_products(session, text, 130, 600)


def test_workers_on_threads_share_the_work() -> None:
    phone.require_standin()
    with phone.opened(contexts=3) as session:
        assert session.contexts == 3
        for text in ("w4g64", "w8g64"):
            check_products(session, text, 200, 700)


def check_products(session: fastrpc.Session, text: str, rows: int, width: int) -> None:
    form, rng = Format.parse(text), np.random.default_rng(4)
    weights = phone.Weights(session, form, random_weights(form, rows, width, rng))
    scratch = phone.Scratch(session, width, group_of(form))
    for x in rng.normal(size=(2, width)).astype(np.float32):
        check_product(session, weights, scratch, x)


def check_product(
    session: fastrpc.Session, weights: phone.Weights, scratch: phone.Scratch, x: np.ndarray
) -> None:
    form, rows = weights.form, len(weights.weights.codes)
    made = phone.product(weights, scratch, x)
    session.run(made.calls, made.inputs, made.outputs)
    one = tables.ratio_one(form.bits, len(x))
    twin = tables.activations(x, group_of(form), one)
    wanted = gemv.lookup(form, weights.weights, weights.scales, twin)
    np.testing.assert_array_equal(phone.by_row(made.outputs[1], rows), wanted)
    near = gemv.products(form, weights.weights, weights.scales, twin, one)
    np.testing.assert_allclose(made.outputs[0][:rows], near, rtol=2**-21)


def test_a_bundles_planes_are_used_as_they_lie(session: fastrpc.Session, tmp_path) -> None:
    """The whole weights file in shared memory; codes are a place in it."""
    convert(make_checkpoint(tmp_path / "tiny"), tmp_path / "tiny.lutra", weights="w4g64")
    bundle = Bundle.open(tmp_path / "tiny.lutra")
    op = next(op for op in bundle.graph.ops() if isinstance(op, Linear))
    tensor = bundle.tensor(op.weight)
    weights = phone.Weights(session, tensor.form, tensor.quantized())
    content = np.fromfile(bundle.weights_path, np.uint8)
    buffer = session.allocate(content.size)
    buffer.array(np.uint8, content.shape)[:] = content
    file = session.attach(buffer)
    start = bundle.start(tensor.name, "planes")
    weights.places["codes"] = fastrpc.Place(file.reference, start)
    width = tensor.shape[1]
    x = np.random.default_rng(5).normal(size=width).astype(np.float32)
    check_product(session, weights, phone.Scratch(session, width, 64), x)


@pytest.mark.parametrize("text", ["w2g64a", "w4g64"])
def test_tiles_for_a_matrix_unit_through_fastrpc(session: fastrpc.Session, text: str) -> None:
    form, rows, width = Format.parse(text), 130, 200
    weights = random_weights(form, rows, width, np.random.default_rng(6))
    parts = {"zeros": np.zeros(1, np.uint8), **pack(form, weights)}
    held = [parts[name] for name in ("planes", "scales", "zeros")]
    inputs = [np.pad(part.reshape(-1).view(np.uint8), (0, 256)) for part in held]
    places = {name: input_place(i) for i, name in enumerate(("codes", "scales", "zeros"))}
    sizes = {"width": width, "tiles": tile_count(rows)}
    for kind in dequantize.kinds_of(form):
        wanted = dequantize.tiles_of(form, weights, kind)
        made = np.zeros_like(wanted)
        name = dequantize.dequantize_kernel(form, kind).name
        call = fastrpc.Call(name, places | sizes | {"out": output_place(0)}, parts=2)
        session.run([call], inputs, [made])
        both = (dequantize.rows_of(tiles, rows) for tiles in (made, wanted))
        np.testing.assert_array_equal(*both, kind)


def test_shared_memory_is_read_where_it_lies(session: fastrpc.Session) -> None:
    """What NumPy writes after `attach` is what a kernel finds."""
    buffer = session.allocate(4096)
    place = session.attach(buffer, writable=True)
    values = buffer.array(np.int16, (256,))
    values[:] = np.arange(-128, 128) * 100
    split = fastrpc.Place(place.reference, 1024)
    call = fastrpc.Call("hvx_split", {"values": place, "bytes": split, "blocks": 1})
    session.run([call])
    made = buffer.array(np.int8, (64, 2, 4), 1024).astype(np.int32)
    np.testing.assert_array_equal((256 * made[:, 0] + made[:, 1]).reshape(-1), values)
    session.detach(place)
    with pytest.raises(CallRefused, match="no such buffer"):
        session.run([call])


def test_the_device_says_what_it_is(session: fastrpc.Session) -> None:
    assert session.version == 67
    assert session.contexts == 1


def test_no_library_for_the_version_is_named(tmp_path) -> None:
    phone.require_standin()
    library, _ = phone.phone()
    with pytest.raises(NpuUnavailable, match=r"no skel library for Hexagon v67"):
        fastrpc.Session(tmp_path, library)


def test_a_library_of_another_version_is_named(tmp_path) -> None:
    phone.require_standin()
    library, folder = phone.phone()
    content = bytearray((folder / file_name(67)).read_bytes())
    content[36] = 0x73
    (tmp_path / file_name(67)).write_bytes(content)
    with pytest.raises(NpuUnavailable, match="is for Hexagon v73"):
        fastrpc.Session(tmp_path, library)


def test_a_library_that_is_cut_short_is_named(tmp_path) -> None:
    phone.require_standin()
    library, folder = phone.phone()
    content = (folder / file_name(67)).read_bytes()
    (tmp_path / file_name(67)).write_bytes(content[:-100])
    with pytest.raises(NpuUnavailable, match="is no whole library"):
        fastrpc.Session(tmp_path, library)


def test_a_phone_that_refuses_unsigned_processes_is_named(monkeypatch) -> None:
    phone.require_standin()
    monkeypatch.setenv("STANDIN_REFUSES_UNSIGNED", "1")
    with pytest.raises(CallRefused, match=r"privileges are insufficient.*signed libraries only"):
        phone.opened()


def test_no_fastrpc_library_is_named() -> None:
    with pytest.raises(NpuUnavailable, match=r"no FastRPC library libnothing\.so"):
        fastrpc.load(["libnothing.so"])


def test_a_library_without_fastrpc_is_named() -> None:
    with pytest.raises(NpuUnavailable, match="too old"):
        fastrpc.load(["libc.so.6"])
