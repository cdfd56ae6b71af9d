"""Cases for the attention kernels: what they put into the cache to the bit, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cpu.kernels import attention
from cpu.kernels.kernel import Kernel, float_slot
from edge.kvcache import CacheFormat, decode, encode, row_length
from tests.cpu.calls import Case
from tests.cpu.harness import call


@dataclass(frozen=True)
class Shape:
    """Heads and key/value heads of `head_dim`, `rows` of queries behind `position` others."""

    heads: int
    kv_heads: int
    head_dim: int
    position: int
    rows: int
    window: int | None = None
    softcap: float | None = None
    threads: int = 1
    private: bool = False


# Grouped or not, odd sizes, less than a vector, more than a span, with and without a window.
SHAPES = (
    Shape(1, 1, 1, 0, 1),
    Shape(4, 4, 64, 17, 1, threads=2, private=True),
    Shape(6, 2, 20, 0, 5, threads=3),
    Shape(7, 1, 33, 40, 3, window=16),
    Shape(14, 2, 64, 300, 2, threads=2, private=True),
    Shape(5, 5, 128, 250, 9, window=7, threads=2),
    Shape(4, 2, 72, 255, 1, window=256, softcap=5.0),
    Shape(3, 1, 23, 520, 4, window=300, softcap=30.0),
    Shape(2, 2, 256, 3, 17),
)


def attention_case(form: CacheFormat, shape: Shape) -> tuple[Case, list[Kernel]]:
    """Append rows to a cache that is NaN, or any bytes, where it is not filled, and attend."""
    s, rng = shape, np.random.default_rng(shape.head_dim * 1000 + shape.position)
    end, copies = s.position + s.rows, s.threads if s.private else 1
    capacity = end + 3 * (s.position % 2)
    query = rng.normal(size=(s.rows, s.heads, s.head_dim)).astype(np.float32)
    held = rng.normal(size=(2, s.kv_heads, end, s.head_dim)).astype(np.float32)
    held *= rng.uniform(0.01, 30, (2, s.kv_heads, end, 1)).astype(np.float32) ** 0.5
    if s.rows > 1:
        held[0, 0, -1] = 0  # a row without a scale
    stored = encode(held, form)
    caches = np.full((2, s.kv_heads, capacity, row_length(s.head_dim, form)), _unused(form))
    caches = caches.astype(stored.dtype)
    before = caches.copy()
    caches[:, :, :end] = stored
    before[:, :, : s.position] = stored[:, :, : s.position]
    new = held[:, :, s.position :].transpose(0, 2, 1, 3).reshape(2, s.rows, -1)
    buffers = {
        "query": _copies(query.reshape(s.rows, -1), copies),
        "key": _copies(new[0], copies),
        "value": _copies(new[1], copies),
        "keys": before[0],
        "values": before[1],
        "out": np.full((s.rows, s.heads * s.head_dim), np.nan, np.float32),
        "scratch": np.full(
            attention.scratch_bytes(s.head_dim) * s.threads // 4, np.nan, np.float32
        ),
    }
    kernel = attention.attention_kernel(form)
    slots: dict[str, int | str] = {name: name for name in buffers}
    slots |= {
        "rows": s.rows,
        "position": s.position,
        "heads": s.heads,
        "kv_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "capacity": capacity,
        "window": s.window or 0,
        "out_stride": 4 * s.heads * s.head_dim,
        "scale": float_slot(s.head_dim**-0.5),
        "softcap": float_slot(s.softcap or 0.0),
        "padded_dim": attention.padded_dim(s.head_dim),
        "scratch_stride": attention.scratch_bytes(s.head_dim),
    }
    for name in ("query", "key", "value"):
        copy = buffers[name][0]
        slots[f"{name}_stride"] = copy[0].nbytes
        slots[f"{name}_private"] = copy.nbytes if s.private else 0
    wanted = attention.attention(
        query.transpose(1, 0, 2).astype(np.float64),
        *decode(stored, form).astype(np.float64),
        s.head_dim**-0.5,
        s.window,
        s.softcap,
    )
    wanted = wanted.transpose(1, 0, 2).reshape(s.rows, -1)
    largest = np.abs(decode(stored[1], form)).max()
    case = Case(
        f"attention {form} {shape}",
        buffers,
        [call(kernel, slots)],
        threads=s.threads,
        expected={"keys": caches[0], "values": caches[1]},
        near={"out": wanted, "scratch": np.empty(0)},
        # scores reach some 30, whose rounding in float32 the exponential takes as it is
        bounds={"out": np.full(wanted.shape, 2e-5 * largest), "scratch": np.empty(0)},
    )
    return case, [kernel]


def _unused(form: CacheFormat) -> float:
    return 77 if form == "int8" else np.nan


def _copies(rows: np.ndarray, count: int) -> np.ndarray:
    """A thread's rows each, with NaN behind every row, which whole vectors may read."""
    padded = np.pad(rows, ((0, 0), (0, 16)), constant_values=np.float32(np.nan))
    return np.repeat(padded[None], count, axis=0)
