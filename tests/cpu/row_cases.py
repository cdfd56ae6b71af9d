"""Cases for kernels of whole rows, of tiles of columns, and of rows of a table.

Buffers end where the kernels' contracts let them: where a row's last vector may be read or written
whole, it ends with that vector, and one element more is in the red zone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cpu.kernels import activations, argmax, elementwise, embedding, rows
from cpu.kernels.kernel import Kernel, float_slot
from edge.formats import Format
from edge.graph import GateFunction
from edge.planes import STEP, TILE, StoredTensor, pack
from tests.cpu.calls import Case
from tests.cpu.harness import call, quantized_rows, random_weights

Floats = NDArray[np.float32]
Slots = dict[str, int | str]

NAN = np.float32(np.nan)

# Of the soft cap.
CAP = 30.0

# Half a unit in the last place, relative.
HALF = 2.0**-24


def whole(count: int, lanes: int) -> int:
    """`count` and what is missing to whole vectors."""
    return -(-count // lanes) * lanes


def spread(x: Floats, stride: int, end: int) -> Floats:
    """Rows `stride` elements apart, NaN between them; the last has `end`."""
    flat = np.full((len(x), stride), NAN)
    flat[:, : x.shape[1]] = x
    return flat.reshape(-1)[: (len(x) - 1) * stride + end].copy()


def row_case(
    kernel: Kernel,
    name: str,
    x: Floats,
    extra: Slots,
    buffers: dict[str, NDArray[np.float32]],
    *,
    end: int,
    threads: int,
    private: bool,
    wanted: NDArray[np.float64] | None = None,
    bound: NDArray[np.float64] | None = None,
    exact: Floats | None = None,
) -> Case:
    """A kernel of whole rows, whose last vector ends at `end`; one copy of out, or one a thread."""
    stride, width = end + 3, x.shape[1]
    shape = ((threads if private else 1) * len(x), stride)
    last = (shape[0] - 1) * stride + end
    held = {"x": spread(x, stride, end), "out": np.full(shape, NAN).reshape(-1)[:last].copy()}
    slots: Slots = {
        "x": "x",
        "out": "out",
        "rows": len(x),
        "width": width,
        "x_stride": 4 * stride,
        "out_stride": 4 * stride,
        "private": 4 * stride * len(x) if private else 0,
        "x_private": 0,
    }
    slots |= {buffer: buffer for buffer in buffers} | extra
    made = Case(f"{kernel.name} {name}", held | buffers, [call(kernel, slots)], threads=threads)
    copies = threads if private else 1

    def laid_out(values: NDArray[np.float64], rest: float) -> NDArray[np.float64]:
        """As in the buffer, `rest` between rows."""
        flat = np.full(shape, rest)
        flat[:, :width] = np.tile(values, (copies, 1))
        return flat.reshape(-1)[:last]

    if exact is not None:
        made.near["out"] = laid_out(exact.astype(np.float64), 0.0)
        made.bounds["out"] = laid_out(np.zeros(exact.shape), np.inf)
    else:
        assert wanted is not None
        assert bound is not None
        made.near["out"] = laid_out(wanted, 0.0)
        made.bounds["out"] = laid_out(bound, np.inf)
    return made


def norm_case(
    lanes: int, count: int, runs: int, size: int, *, threads: int = 1, private: bool = False
) -> Case:
    """RMS norm of `runs` of `size` elements a row."""
    rng = np.random.default_rng(count * 1000 + size)
    x = rng.normal(size=(count, runs * size)).astype(np.float32)
    weight = rng.normal(size=size).astype(np.float32)
    wanted = rows.norm(x.astype(np.float64), weight.astype(np.float64), 1e-5)
    return row_case(
        rows.norm_kernel(),
        f"{count}x{runs}x{size} by {threads}",
        x,
        {"size": size, "eps": float_slot(1e-5)},
        # a vector that lowering keeps with zeros behind it
        {"weight": np.pad(weight, (0, whole(size, lanes) - size))},
        end=(runs - 1) * size + whole(size, lanes),
        threads=threads,
        private=private,
        wanted=wanted,
        bound=HALF * (size + 8) * np.abs(wanted),
    )


def rope_case(
    count: int, heads: int, head_dim: int, half: int, *, threads: int = 1, private: bool = False
) -> Case:
    """Rotation at position 3 and on. It reads and writes elements, nothing beside them."""
    rng = np.random.default_rng(count * 1000 + head_dim)
    x = rng.normal(size=(count, heads * head_dim)).astype(np.float32)
    angles = rng.uniform(-3, 3, (3 + count, half)).astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)
    wide = [array[3:].astype(np.float64) for array in (cos, sin)]
    wanted = rows.rope(x.astype(np.float64), *wide, head_dim)
    return row_case(
        rows.rope_kernel(),
        f"{count}x{heads}x{head_dim} half {half} by {threads}",
        x,
        {"head_dim": head_dim, "half": half, "position": 3, "table_stride": 4 * half},
        {"cos": cos, "sin": sin},
        end=heads * head_dim,
        threads=threads,
        private=private,
        wanted=wanted,
        bound=np.full(wanted.shape, 3 * HALF * np.abs(x).max()),
    )


def int8_case(
    lanes: int, count: int, width: int, *, threads: int = 1, private: bool = False
) -> Case:
    """Rounding to 8 bits, to the bit; a row of zeros among the rows."""
    rng = np.random.default_rng(count * 1000 + width)
    x = rng.normal(size=(count, width)).astype(np.float32)
    x[-1] *= count == 1
    return row_case(
        rows.int8_kernel(),
        f"{count}x{width} by {threads}",
        x,
        {},
        {},
        end=whole(width, lanes),
        threads=threads,
        private=private,
        exact=rows.int8(x),
    )


def norm_quantize_case(
    x: Floats,
    weight: Floats,
    block: int,
    wanted: NDArray[np.uint8],
    *,
    eps: float = 1e-5,
    threads: int = 1,
    private: bool = False,
) -> Case:
    """Quantized rows of a norm, `wanted` in each of the copies."""
    count, width = x.shape
    layout = activations.RowLayout(width, block)
    copies = threads if private else 1
    end = whole(width, 16)
    kernel = activations.norm_quantize_kernel(block)
    slots: Slots = {
        "x": "x",
        "weight": "weight",
        "out": "out",
        "rows": count,
        "width": width,
        "x_stride": 4 * (end + 3),
        "out_stride": layout.byte_count,
        "eps": float_slot(eps),
        "padded": layout.padded,
        "scales": layout.scales,
        "sums": layout.sums,
        "private": layout.byte_count * count if private else 0,
        "x_private": 0,
    }
    return Case(
        f"{kernel.name} {count}x{width} by {threads}",
        {
            "x": spread(x, end + 3, end),
            "weight": np.pad(weight, (0, end - width)),
            "out": np.zeros((copies * count, layout.byte_count), np.uint8),
        },
        [call(kernel, slots)],
        threads=threads,
        expected={"out": np.tile(wanted, (copies, 1))},
    )


def exact_norm_quantize_case(
    count: int, width: int, block: int, *, threads: int = 1, private: bool = False
) -> Case:
    """Rows of one power of two with either sign, whose norm is the signs: the twin to the bit."""
    rng = np.random.default_rng(count * 1000 + width)
    weight = rng.normal(size=width).astype(np.float32)
    signs = rng.choice(np.array([-1, 1], np.float32), (count, width))
    x = signs * np.exp2(np.arange(count, dtype=np.float32) - 2)[:, None]
    made = activations.norm_quantize_rows(x, weight, 0.0, block)
    wanted = quantized_rows(x, block, made)
    return norm_quantize_case(x, weight, block, wanted, eps=0.0, threads=threads, private=private)


def quantize_sliced_case(count: int, width: int, block: int, *, threads: int = 1) -> Case:
    """Quantized rows in slices; rows end with their last tile, and past the width with NaN."""
    rng = np.random.default_rng(count * 1000 + width)
    x = rng.normal(size=(count, width)).astype(np.float32)
    layout, tiles = activations.RowLayout(width, block), -(-width // TILE)
    kernel = activations.quantize_sliced_kernel(block)
    slots: Slots = {
        "x": "x",
        "out": "out",
        "rows": count,
        "tiles": tiles,
        "width": width,
        "x_stride": 4 * (TILE * tiles + 3),
        "out_stride": layout.byte_count,
        "padded": layout.padded,
        "scales": layout.scales,
        "sums": layout.sums,
    }
    return Case(
        f"{kernel.name} {count}x{width} by {threads}",
        {
            "x": spread(x, TILE * tiles + 3, TILE * tiles),
            "out": np.zeros((count, layout.byte_count), np.uint8),
        },
        [call(kernel, slots)],
        threads=threads,
        expected={"out": quantized_rows(x, block)},
    )


def argmax_case(x: Floats, threads: int, lanes: int) -> Case:
    """The best of logits without NaN, in the slices of `threads`; threads without any have none."""
    tiles = -(-len(x) // TILE)
    wanted = np.zeros((threads, argmax.LINE), np.uint8)
    for thread in range(threads):
        first, last = (tiles * (thread + i) // threads * TILE for i in (0, 1))
        token, score = argmax.argmax(x[first:last]) if last > first else (0, -np.inf)
        wanted[thread, :4] = np.array([score], np.float32).view(np.uint8)
        wanted[thread, 4:8] = np.array([first * (last > first) + token], np.int32).view(np.uint8)
    kernel = argmax.argmax_kernel()
    return Case(
        f"argmax of {len(x)} by {threads}",
        {
            # a row's padding is not looked at
            "x": np.pad(x, (0, whole(len(x), lanes) - len(x)), constant_values=np.inf),
            "out": np.zeros(wanted.shape, np.uint8),
        },
        [call(kernel, {"x": "x", "out": "out", "width": len(x)})],
        threads=threads,
        expected={"out": wanted},
    )


def elementwise_case(
    kernel: Kernel,
    twin: Callable[[Floats, Floats], Floats],
    count: int,
    tiles: int,
    *,
    threads: int = 1,
    number: float = 1.0,
) -> Case:
    """Whole tiles of two inputs; `a` is private to threads, `b` is not."""
    rng = np.random.default_rng(count * 1000 + tiles)
    width = tiles * TILE
    a = rng.normal(0, 4, size=(count, width)).astype(np.float32)
    a[0, :4] = 0, -100, 100, 1e-8
    b = rng.normal(size=(count, width)).astype(np.float32)
    with np.errstate(over="ignore"):
        wanted = twin(a.astype(np.float64), b.astype(np.float64))
    slots: Slots = {
        "a": "a",
        "b": "b",
        "out": "out",
        "rows": count,
        "tiles": tiles,
        "a_stride": 4 * width,
        "b_stride": 4 * width,
        "out_stride": 4 * width,
        "number": float_slot(number),
        "a_private": a.nbytes,
        "b_private": 0,
    }
    return Case(
        f"{kernel.name} {count}x{tiles} by {threads}",
        {"a": np.stack([a] * threads), "b": b, "out": np.full((count, width), NAN)},
        [call(kernel, slots)],
        threads=threads,
        near={"out": wanted},
        # what the polynomials for exp and erf are good for; a soft cap is its number times a tanh
        bounds={"out": 1e-6 * (np.abs(wanted) + np.abs(a) * (1 + np.abs(b)) * 0.5 + 0.1 * number)},
    )


def elementwise_cases(threads: int) -> list[tuple[Case, list[Kernel]]]:
    """Every kernel that works element by element."""

    def gate(function: GateFunction) -> tuple[Kernel, Callable[[Floats, Floats], Floats]]:
        return elementwise.gate_kernel(function), lambda a, b: elementwise.gate(function, a, b)

    functions: tuple[GateFunction, ...] = ("silu", "gelu_tanh", "gelu", "relu", "relu2")
    pairs = [gate(function) for function in functions]
    pairs += [
        (elementwise.add_kernel(), elementwise.add),
        (elementwise.softcap_kernel(), lambda a, _: elementwise.softcap(a, CAP)),
    ]
    shapes = ((1, 1), (3, 2), (2, 5))
    return [
        (elementwise_case(kernel, twin, *shape, threads=threads, number=CAP), [kernel])
        for kernel, twin in pairs
        for shape in shapes
    ]


def embedding_case(form: Format, vocabulary: int, width: int, *, threads: int = 1) -> Case:
    """Rows of a table, the first and the last among them. Whole steps of 8 are written."""
    rng = np.random.default_rng(vocabulary * 1000 + width)
    tokens = np.array([0, vocabulary - 1, *rng.integers(0, vocabulary, 3)], np.int32)
    if form.quantized:
        parts = pack(form, random_weights(form, vocabulary, width, rng))
    else:
        parts = {"values": rng.normal(size=(vocabulary, width)).astype(f"float{form.bits}")}
    table = StoredTensor("table", form, (vocabulary, width), parts)
    wanted = table.rows(tokens).astype(np.float64) * np.float32(1.7)
    written = whole(width, STEP) if form.quantized else width
    kernel = embedding.embedding_kernel(form)
    slots: Slots = {
        "tokens": "tokens",
        "codes": "codes",
        "scales": "scales",
        "zeros": "zeros",
        "out": "out",
        "rows": len(tokens),
        "width": width,
        "groups": form.group_count(width) if form.quantized else 0,
        "steps": -(-width // STEP),
        "vocabulary": vocabulary,
        "out_stride": 4 * written,
        "scale": float_slot(1.7),
    }
    codes = next(parts[name] for name in ("planes", "codes", "values") if name in parts)
    nothing = np.zeros(1, np.uint8)
    return Case(
        f"embedding {form} {vocabulary}x{width} by {threads}",
        {
            "tokens": tokens,
            "codes": codes,
            "scales": parts.get("scales", nothing),
            "zeros": parts.get("zeros", nothing),
            "out": np.full((len(tokens), written), NAN),
        },
        [call(kernel, slots)],
        threads=threads,
        near={"out": wanted},
        bounds={"out": 4 * HALF * np.abs(wanted)},
    )
