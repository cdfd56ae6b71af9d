"""AMX instructions, emulated or the machine's own, against what Intel's manual says of each."""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.bench.ceilings import rates_of, tile_configuration
from cpu.codegen.emit import Module, object_code
from cpu.codegen.image import Image, link_image
from cpu.codegen.language import I64, POINTER, Code, Value
from tests.cpu.amx.emulator import AMX, emulation, has_amx
from tests.cpu.harness import isa_of

pytestmark = pytest.mark.amx

Bytes = NDArray[np.uint8]

# Rows of c, columns of c, and 4-byte pieces that are summed up.
SHAPES = ((16, 16, 16), (1, 1, 1), (5, 3, 7), (16, 9, 2))
STRIDE = 80

# What each product takes a and b for.
PRODUCTS = {
    "tdpbssd": (np.int8, np.int8),
    "tdpbsud": (np.int8, np.uint8),
    "tdpbusd": (np.uint8, np.int8),
    "tdpbuud": (np.uint8, np.uint8),
}


def configured(*shapes: tuple[int, int]) -> Bytes:
    """LDTILECFG's operand: rows and bytes a row of the first tiles."""
    made = np.zeros(64, np.uint8)
    made[0] = 1
    for tile, (rows, row_bytes) in enumerate(shapes):
        made[16 + 2 * tile], made[48 + tile] = row_bytes, rows
    return made


def compiled(write: Callable[..., None]) -> Callable[..., None]:
    """A function of four pointers in this process, with a stride behind them."""
    module = Module(isa_of(str(AMX)))
    module.function("made", [POINTER] * 4 + [I64], write)
    image = Image.of(link_image(object_code(module)))
    function = image.function("made", *[ctypes.c_void_p] * 4, ctypes.c_int64)

    def call(*arrays: NDArray[np.generic]) -> None:
        assert image
        function(*(array.ctypes.data for array in arrays), STRIDE)

    return call


def product_code(name: str) -> Callable[..., None]:
    """c += a times b, by tiles 0, 1 and 2."""

    def write(code: Code, config: Value, a: Value, b: Value, c: Value, stride: Value) -> None:
        code.intrinsic("llvm.x86.ldtilecfg", None, config)
        code.intrinsic("llvm.x86.tileloadd64", None, 0, c, stride)
        code.intrinsic("llvm.x86.tileloaddt164", None, 1, a, stride)
        code.intrinsic("llvm.x86.tileloadd64", None, 2, b, stride)
        code.intrinsic(f"llvm.x86.{name}", None, 0, 1, 2)
        code.intrinsic("llvm.x86.tilestored64", None, 0, c, stride)
        code.intrinsic("llvm.x86.tilerelease", None)

    return write


def product(
    name: str, shape: tuple[int, int, int], a: Bytes, b: Bytes, c: Bytes
) -> NDArray[np.uint8]:
    """Rows of bytes through tiles; what lies between rows must stay."""
    m, n, k = shape
    rows = [np.full((16, STRIDE), 0xA5, np.uint8) for _ in range(3)]
    for held, given in zip(rows, (a, b, c), strict=True):
        held[: len(given), : given.shape[1]] = given
    want = rows[2].copy()
    want[:m, : 4 * n] = 0
    compiled(product_code(name))(configured((m, 4 * n), (m, 4 * k), (k, 4 * n)), *rows)
    left = rows[2][:m, : 4 * n].copy()
    rows[2][:m, : 4 * n] = 0
    np.testing.assert_array_equal(rows[2], want)
    return left


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_bytes_are_exact(name: str, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    rng, (kind_a, kind_b) = np.random.default_rng(m + n), PRODUCTS[name]
    a, b = (rng.integers(0, 256, (rows, 4 * width), np.uint8) for rows, width in ((m, k), (k, n)))
    c = rng.integers(-(2**31), 2**31, (m, n), np.int32)
    wide = b.view(kind_b).astype(np.int64).reshape(k, n, 4)
    sums = np.einsum("mkf,knf->mn", a.view(kind_a).astype(np.int64).reshape(m, k, 4), wide)
    want = (c + sums).astype(np.int32)  # modulo 2^32
    made = product(name, shape, a, b, c.view(np.uint8))
    np.testing.assert_array_equal(made.view(np.int32), want)


def flushed(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Denormals as zeros of their sign."""
    small = np.abs(values) < np.finfo(np.float32).smallest_normal
    return np.where(small, np.copysign(np.float32(0), values), values)


def pair_sums(
    x: NDArray[np.float32], w: NDArray[np.float32], c: NDArray[np.float32]
) -> NDArray[np.float32]:
    """TDPBF16PS: x [m, k, 2], w [k, n, 2]; the even and the odd are summed up apart, then added.

    A product is exact in float64, and so is its sum with a float32 of no very different size.
    """
    x, w, c = (flushed(values) for values in (x, w, c))
    sums = np.zeros((2, *c.shape), np.float32)
    for k in range(x.shape[1]):
        for half in range(2):
            products = np.multiply.outer(x[:, k, half].astype(np.float64), w[k, :, half])
            sums[half] = flushed((sums[half] + products).astype(np.float32))
    return flushed(c + flushed(sums[0] + sums[1]))


def bfloat16_case(
    shape: tuple[int, int, int], x: NDArray[np.float32], w: NDArray[np.float32], c: float
) -> None:
    m, n, k = shape
    start = np.full((m, n), c, np.float32)
    rows = [
        (values.view(np.uint32) >> 16).astype(np.uint16).reshape(count, -1).view(np.uint8)
        for values, count in ((x, m), (w, k))
    ]
    made = product("tdpbf16ps", shape, rows[0], rows[1], start.view(np.uint8))
    want = pair_sums(x, w, start)
    np.testing.assert_array_equal(made.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_bfloat16_are_as_the_manual_sums_them(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    rng = np.random.default_rng(k)
    x, w = (rng.normal(size=size).astype(np.float32) for size in ((m, k, 2), (k, n, 2)))
    cut = [(values.view(np.uint32) & 0xFFFF0000).view(np.float32) for values in (x, w)]
    bfloat16_case(shape, *cut, c=0.3)


@pytest.mark.parametrize(
    ("x", "w", "c"),
    [
        (2.0**-130, 2.0**60, 1.0),  # a denormal of bfloat16
        (2.0**-70, 2.0**-70, 0.0),  # of which a product is
        (-(2.0**-70), 2.0**-70, 0.0),
        (1.0, 1.0, 2.0**-130),
        (1.0, 2.0**-126, -1.5 * 2.0**-125),  # of which a sum is
    ],
)
def test_denormals_are_zeros(x: float, w: float, c: float) -> None:
    ones = np.ones((1, 1, 2), np.float32)
    bfloat16_case((1, 1, 1), ones * np.float32(x), ones * np.float32(w), c)


def test_a_load_fills_with_zeros_what_lies_beyond_the_shape() -> None:
    """Loaded as 3 rows of 8 bytes, in a tile that is then stored with all its rows."""

    def write(code: Code, config: Value, x: Value, out: Value, left: Value, stride: Value) -> None:
        code.intrinsic("llvm.x86.sttilecfg", None, left)
        code.intrinsic("llvm.x86.ldtilecfg", None, config)
        code.intrinsic("llvm.x86.sttilecfg", None, code.offset(left, 64))
        code.intrinsic("llvm.x86.tileloadd64", None, 3, x, stride)
        code.intrinsic("llvm.x86.tilestored64", None, 3, out, stride)
        code.intrinsic("llvm.x86.tilezero", None, 3)
        code.intrinsic("llvm.x86.tilestored64", None, 3, code.offset(out, 8), stride)
        code.intrinsic("llvm.x86.tilerelease", None)
        code.intrinsic("llvm.x86.sttilecfg", None, code.offset(left, 128))

    config = configured((1, 4), (1, 4), (1, 4), (3, 8))
    x = np.arange(4 * STRIDE, dtype=np.uint8).reshape(4, STRIDE)
    out, left = np.full((4, STRIDE), 7, np.uint8), np.full(192, 9, np.uint8)
    compiled(write)(config, x, out, left)
    np.testing.assert_array_equal(out[:3, :8], x[:3, :8])
    assert not out[:3, 8:16].any()
    assert (out[3] == 7).all()
    assert (out[:, 16:] == 7).all()
    np.testing.assert_array_equal(left[64:128], config)
    assert not left[:64].any()
    assert not left[128:].any()


def test_loops_that_measure_the_unit_are_what_it_takes() -> None:
    """Of tiles that are zeros, so that their sums stay so."""
    for rate in rates_of(isa_of(str(AMX)))[1:]:
        module = Module(isa_of(str(AMX)))
        module.function(rate.name, [POINTER, POINTER, I64], rate.write)
        image = Image.of(link_image(object_code(module)))
        function = image.function(rate.name, *[ctypes.c_void_p] * 2, ctypes.c_int64)
        out = np.ones(4096, np.uint8)
        function(tile_configuration().ctypes.data, out.ctypes.data, 3)
        assert not out[:1024].any()
        assert out[1024:].all()


# What the manual forbids.


def two_tiles(first: int, second: int) -> Callable[..., None]:
    """A product by tiles 0, `first` and `second`."""

    def write(code: Code, config: Value, a: Value, b: Value, c: Value, stride: Value) -> None:
        code.intrinsic("llvm.x86.ldtilecfg", None, config)
        code.intrinsic("llvm.x86.tdpbf16ps", None, 0, first, second)

    return write


def unconfigured(code: Code, config: Value, a: Value, b: Value, c: Value, stride: Value) -> None:
    code.intrinsic("llvm.x86.tilezero", None, 2)


def altered(place: int, value: int) -> Bytes:
    config = configured((16, 64), (16, 64), (16, 64))
    config[place] = value
    return config


def attempt(write: Callable[..., None], config: Bytes, said: Path) -> None:
    faulthandler.disable()  # which takes all signals
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    blank = np.zeros((16, STRIDE), np.uint8)
    with emulation():
        compiled(write)(config, blank, blank, blank)


@pytest.mark.skipif(has_amx(), reason="a processor says no more than SIGILL or SIGSEGV")
@pytest.mark.parametrize(
    ("write", "config", "why"),
    [
        (unconfigured, altered(0, 1), "tiles are not configured"),
        (two_tiles(1, 2), altered(0, 2), "no such palette"),
        (two_tiles(1, 2), altered(5, 1), "reserved bytes"),
        (two_tiles(1, 2), altered(56, 16), "reserved bytes"),
        (two_tiles(1, 2), altered(17, 1), "too large"),
        (two_tiles(1, 2), altered(48, 17), "too large"),
        (two_tiles(1, 2), altered(49, 0), "rows or columns of 0"),
        (two_tiles(1, 3), altered(0, 1), "no such tile"),
        (two_tiles(1, 1), altered(0, 1), "the same tile twice"),
        (two_tiles(1, 2), altered(48, 8), "rows do not match"),
        (two_tiles(1, 2), altered(16, 32), "columns do not match"),
        (two_tiles(1, 2), altered(50, 8), "depths do not match"),
        (two_tiles(1, 2), altered(18, 62), "no multiple of 4"),
    ],
)
def test_what_the_manual_forbids_ends_with_a_line(
    write: Callable[..., None], config: Bytes, why: str, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    context = multiprocessing.get_context("fork")
    child = context.Process(target=attempt, args=(write, config, said))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGABRT
    assert why in said.read_text()
