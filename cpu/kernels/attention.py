"""Attention over the KV cache, for prefill and decode: append, then online softmax.

Threads take key/value heads; a head's queries see its cache alone, so no barrier is needed between
appending and reading. The queries of a head, which are its rows times the query heads that share
it, are taken four at a time, so that each key and value is loaded once for four; the last four may
be some of the ones before again, which costs less than to take what is left one by one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cpu.codegen import math
from cpu.codegen.language import F16, F32, I8, I16, I32, I64, Code, Type, Value, Variable
from cpu.kernels.kernel import Arguments, Kernel, Thread, float_slot, minimum, totals
from cpu.kernels.rows import peak_of
from edge.graph import Attention, Cache
from edge.kvcache import LEAST, SCALE_BYTES, CacheFormat
from edge.planes import TILE

Floats = NDArray[np.float32]

SLOTS = (
    *("query", "key", "value", "keys", "values", "out"),
    *("rows", "position", "heads", "kv_heads", "head_dim", "capacity", "window"),
    *("query_stride", "key_stride", "value_stride", "out_stride"),
    *("query_private", "key_private", "value_private"),
    *("scale", "softcap", "padded_dim", "scratch", "scratch_stride"),
)

APPEND_SLOTS = (
    *("key", "value", "keys", "values", "rows", "position", "kv_heads", "head_dim", "capacity"),
    *("key_stride", "value_stride", "key_private", "value_private"),
)

# Positions whose scores are made before their values are summed: scores and values of a span stay
# in the caches.
SPAN = 256

# Bytes ahead at which lines of keys are asked for. Values are asked for beside their keys, a span
# before they are used. On two cores of a Zen 5, 57 MB of float16 are read in 1.15 ms so, where
# without it took 1.92 (512 and 4096 bytes: 1.20).
_AHEAD_BYTES, _LINE = 2048, 64

# Queries taken together: 4 times 4 vectors of sums fill half of 32 registers.
_TOGETHER = 4
_CHUNKS = 4, 1

_ELEMENTS = {"f32": F32, "f16": F16, "int8": I8}
_LEAST = -1e30


def scratch_bytes(head_dim: int) -> int:
    """Scratch memory that a thread needs."""
    return 4 * _TOGETHER * (padded_dim(head_dim) + SPAN + TILE)


def padded_dim(head_dim: int) -> int:
    """Values from one query's sums to the next's: whole vectors may be read and written."""
    return -(-head_dim // TILE) * TILE + TILE


def head_slots(op: Attention, cache: Cache, query_width: int) -> dict[str, int]:
    """The slots that say what heads there are and how they attend."""
    return {
        "heads": query_width // cache.head_dim,
        "kv_heads": cache.kv_heads,
        "head_dim": cache.head_dim,
        "window": op.window or 0,
        "scale": float_slot(op.scale),
        "softcap": float_slot(op.softcap or 0.0),
        "padded_dim": padded_dim(cache.head_dim),
        "scratch_stride": scratch_bytes(cache.head_dim),
    }


@dataclass(frozen=True)
class Cached:
    """How a row of the cache is stored: elements and, where `scaled`, two scales behind them."""

    element: Type
    scaled: bool

    def row_bytes(self, head_dim: Value) -> Value:
        return head_dim * self.element.byte_count + (SCALE_BYTES if self.scaled else 0)


def attention_kernel(cache_format: CacheFormat) -> Kernel:
    """See `SLOTS`. Query rows are at `position` and on; caches are [kv_heads, capacity, row].

    `window` and `softcap` are 0 for none. `scratch` has `scratch_bytes` for every thread.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("kv_heads"))
        with code.loop(first, last) as kv_head:
            _Head(code, a, thread, kv_head, cached_as(cache_format)).run()

    return Kernel(f"attention_{cache_format}", SLOTS, body)


def append_kernel(cache_format: CacheFormat) -> Kernel:
    """Put rows of keys and values into the cache at `position` and on, and no more."""

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        first, last = thread.share(a.integer("kv_heads"))
        with code.loop(first, last) as kv_head:
            HeadCache(code, a, thread, kv_head, cached_as(cache_format)).append()

    return Kernel(f"append_{cache_format}", APPEND_SLOTS, body)


def cached_as(cache_format: CacheFormat) -> Cached:
    return Cached(_ELEMENTS[cache_format], scaled=cache_format == "int8")


class HeadCache:
    """Writes the code for the cache of one key/value head.

    `parts` are the columns that share a scale, first and one past last.
    """

    INPUTS: tuple[str, ...] = ("key", "value")

    def __init__(
        self, code: Code, a: Arguments, thread: Thread, kv_head: Value, cached: Cached
    ) -> None:
        self.code, self.a, self.kv_head, self.cached = code, a, kv_head, cached
        self.head_dim = a.integer("head_dim")
        self.row_bytes = cached.row_bytes(self.head_dim)
        size = a.integer("capacity") * self.row_bytes
        self.keys = code.offset(a.pointer("keys"), kv_head * size)
        self.values = code.offset(a.pointer("values"), kv_head * size)
        self.inputs = {
            name: code.offset(a.pointer(name), thread.index * a.integer(f"{name}_private"))
            for name in self.INPUTS
        }
        start, half = code.constant(I64, 0), self.head_dim // 2
        halves = ((start, half), (half, self.head_dim))
        self.parts = halves if cached.scaled else ((start, self.head_dim),)

    def append(self) -> None:
        """Copy the rows of this head into the cache, in its format."""
        with self.code.loop(0, self.a.integer("rows")) as row:
            self.append_row(row, "key", self.keys)
            self.append_row(row, "value", self.values)

    def append_row(self, row: Value, name: str, cache: Value) -> None:
        code, a = self.code, self.a
        source = code.offset(self.inputs[name], row * a.integer(f"{name}_stride"))
        source = code.offset(source, self.kv_head * self.head_dim * 4)
        target = code.offset(cache, (a.integer("position") + row) * self.row_bytes)
        for number, part in enumerate(self.parts):
            inverse = self.append_scale(source, target, number) if self.cached.scaled else None
            self.append_part(source, target, part, inverse)

    def append_part(
        self, source: Value, target: Value, part: tuple[Value, Value], inverse: Value | None
    ) -> None:
        """Copy columns that share a scale, whose inverse is given."""
        code, element = self.code, self.cached.element
        for lanes, first, last in self.columns(part):
            with code.loop(first, last, lanes) as i:
                values = code.load(F32.of(lanes), source, i * 4)
                if inverse is not None:
                    values = (values * inverse.broadcast(lanes)).round().to(I32)
                code.store(values.to(element), target, i * element.byte_count)

    def append_scale(self, source: Value, target: Value, number: int) -> Value:
        """Store the scale of a part of a row behind it, as bfloat16; returns the inverse."""
        code, (first, last) = self.code, self.parts[number]

        def of_part(kind: Type, i: Value) -> Value:
            order = code.constant(I32.of(kind.lanes), list(range(kind.lanes)))
            inside = order >= (first - i).to(I32).broadcast(kind.lanes)
            return inside.select(code.load(kind, source, i * 4), 0.0)

        peak = peak_of(code, of_part, last)
        bits = (peak * (1 / 127)).cast(I32) + 0x8000
        code.store((bits >> 16).to(I16), target, self.head_dim + 2 * number, align=1)
        scale = (bits & -0x10000).cast(F32)
        return (peak > LEAST).select(code.constant(F32, 1.0) / scale, 0.0)

    def scales(self, row: Value) -> list[Value | None]:
        """The scale of each part of a row of the cache; None where there is none."""
        if not self.cached.scaled:
            return [None]
        both = self.code.load(I32, row, self.head_dim, align=1)
        return [(both << 16).cast(F32), (both & -0x10000).cast(F32)]

    def columns(self, part: tuple[Value, Value]) -> tuple[tuple[int, Value, Value], ...]:
        """Lanes, first and one past the last column: of whole vectors, and of what is left."""
        lanes, (first, last) = self.code.isa.lanes, part
        vectors = last - (last - first) % lanes
        return (lanes, first, vectors), (1, vectors, last)


class _Head(HeadCache):
    """Writes the code for one key/value head and the query heads that share it."""

    INPUTS = ("query", "key", "value")

    def __init__(
        self, code: Code, a: Arguments, thread: Thread, kv_head: Value, cached: Cached
    ) -> None:
        # first: on AVX2, addresses loaded in another order cost the inner loop 10 instructions
        self.scratch = code.offset(a.pointer("scratch"), thread.index * a.integer("scratch_stride"))
        super().__init__(code, a, thread, kv_head, cached)
        self.group = a.integer("heads") // a.integer("kv_heads")

    def run(self) -> None:
        code, a = self.code, self.a
        self.append()
        queries = a.integer("rows") * self.group
        last = queries - _TOGETHER
        together = (last < 0).select(code.constant(I64, 0), queries)
        with code.loop(0, together, _TOGETHER) as first:
            _Queries(self, minimum(first, last), _TOGETHER).attend()
        with code.loop(together, queries) as first:
            _Queries(self, first, 1).attend()


class _Queries:
    """Writes the code for `count` queries from number `first` on: row * group + member."""

    def __init__(self, head: _Head, first: Value, count: int) -> None:
        self.head, self.code, self.a = head, head.code, head.a
        self.first, self.count = first, count
        self.lanes = head.code.isa.lanes
        self.rows, self.offsets = [], []
        for number in range(count):
            row, member = (first + number) // head.group, (first + number) % head.group
            self.rows.append(row)
            self.offsets.append((head.kv_head * head.group + member) * (head.head_dim * 4))
        self.ends = [self.a.integer("position") + row + 1 for row in self.rows]
        self.queries = [
            self.code.offset(head.inputs["query"], row * self.a.integer("query_stride") + offset)
            for row, offset in zip(self.rows, self.offsets, strict=True)
        ]
        size = self.a.integer("padded_dim") * 4
        self.sums = [self.code.offset(head.scratch, size * i) for i in range(count)]
        scores = self.code.offset(head.scratch, size * count)
        self.scores = [self.code.offset(scores, 4 * (SPAN + TILE) * i) for i in range(count)]

    def attend(self) -> None:
        """Span by span of positions, up to the last that the last query sees."""
        code = self.code
        window, end = self.a.integer("window"), self.ends[-1]
        start = window.equals(0).select(code.constant(I64, 0), self.ends[0] - window)
        start = (start < 0).select(code.constant(I64, 0), start)
        peaks = [code.variable(code.constant(F32, _LEAST)) for _ in range(self.count)]
        weights = [code.variable(code.constant(F32, 0.0)) for _ in range(self.count)]
        for sums in self.sums:
            self.rescale(sums, code.constant(F32, 0.0))
        with code.loop(start, end, SPAN) as first:
            stop = (first + SPAN < end).select(first + SPAN, end)
            self.make_scores(first, stop)
            for index in range(self.count):
                self.soften(index, first, stop, peaks[index], weights[index])
            self.add_values(first, stop)
        for index, weight in enumerate(weights):
            self.finish(index, code.constant(F32, 1.0) / weight.get())

    def rescale(self, sums: Value, factor: Value) -> None:
        """Multiply the sums of a query; by zero, whatever they were."""
        code, kind = self.code, F32.of(self.lanes)
        with code.loop(0, self.head.head_dim * 4, kind.byte_count) as offset:
            held = code.load(kind, sums, offset)
            made = held * factor.broadcast(self.lanes)
            code.store((factor > 0.0).broadcast(self.lanes).select(made, 0.0), sums, offset)

    # Scores.

    def make_scores(self, first: Value, stop: Value) -> None:
        """Dot products of the queries with the keys of a span."""
        code, count = self.code, self.code.isa.keys_together
        whole = stop - (stop - first) % count
        for size, begin, end in ((count, first, whole), (1, whole, stop)):
            with code.loop(begin, end, size) as position:
                rows = [(position + i) * self.head.row_bytes for i in range(size)]
                for row in rows:
                    self.fetch(row)
                dots = self.dots([code.offset(self.head.keys, row) for row in rows])
                for made, scores in zip(dots, self.scores, strict=True):
                    code.store(made, scores, (position - first) * 4)

    def fetch(self, row: Value) -> None:
        """Ask for lines of a key some way ahead, and of the value that goes with this one."""
        code, head = self.code, self.head
        with code.when(self.first.equals(0)), code.loop(0, head.row_bytes, _LINE) as line:
            code.prefetch(head.keys, row + line + _AHEAD_BYTES)
            code.prefetch(head.values, row + line)

    def dots(self, keys: list[Value]) -> list[Value]:
        """Each query times some keys, which are the lanes."""
        code, head = self.code, self.head
        zero = code.constant(F32.of(self.lanes), 0.0)
        sums = [zero] * (len(self.queries) * len(keys))  # [queries, keys]
        scales = [head.scales(key) for key in keys] * len(self.queries)
        for number, part in enumerate(head.parts):
            for place, made in enumerate(self.products(keys, part)):
                scale = scales[place][number]
                sums[place] = sums[place] + (made if scale is None else made * scale)
        if len(keys) == 1:
            return [total.total() for total in sums]
        dots = []
        for start in range(0, len(sums), self.lanes):
            both = totals(sums[start : start + self.lanes])
            firsts = range(0, both.type.lanes, len(keys))
            dots += [both.shuffle(range(i, i + len(keys))) for i in firsts]
        return dots

    def products(self, keys: list[Value], part: tuple[Value, Value]) -> list[Value]:
        """Each query times a part of each key, summed up lane by lane: [queries, keys]."""
        code, element, kind = self.code, self.head.cached.element, F32.of(self.lanes)
        first_lane = code.constant(I32.of(self.lanes), list(range(self.lanes))).equals(0)
        sums = [code.variable(code.constant(kind, 0.0)) for _ in self.queries for _ in keys]
        for lanes, first, last in self.head.columns(part):
            with code.loop(first, last, lanes) as i:
                place = i * element.byte_count
                values = [code.load_floats(element.of(lanes), key, place) for key in keys]
                queries = [code.load(F32.of(lanes), query, i * 4) for query in self.queries]
                pairs = itertools.product(queries, values)
                for held, (query, value) in zip(sums, pairs, strict=True):
                    if lanes == 1:
                        rest = (query * value).broadcast(self.lanes)
                        held.set(held.get() + first_lane.select(rest, 0.0))
                    else:
                        held.set(query.fma(value, held.get()))
        return [held.get() for held in sums]

    def soften(
        self, index: int, first: Value, stop: Value, peak: Variable, weight: Variable
    ) -> None:
        """Scores of one query to weights, and its sums so far to the new largest score."""
        code, kind = self.code, F32.of(self.lanes)
        scores, count = self.scores[index], stop - first
        before = peak.get()
        largest = code.variable(before.broadcast(self.lanes))
        with code.loop(0, count, self.lanes) as i:
            score = self.seen(index, first + i, stop, self.scaled(code.load(kind, scores, i * 4)))
            code.store(score, scores, i * 4)
            largest.set(largest.get().maximum(score))
        peak.set(largest.get().largest())
        shrink = math.exp(before - peak.get())
        total = code.variable(code.constant(kind, 0.0))
        with code.loop(0, count, self.lanes) as i:
            score = code.load(kind, scores, i * 4)
            # a score that is not seen weighs nothing, even where none of the span is
            made = math.exp(score - peak.get().broadcast(self.lanes))
            made = (score > _LEAST).select(made, 0.0)
            code.store(made, scores, i * 4)
            total.set(total.get() + made)
        weight.set(weight.get() * shrink + total.get().total())
        self.rescale(self.sums[index], shrink)

    def scaled(self, score: Value) -> Value:
        """Score times scale, with the soft cap where there is one."""
        code, lanes = self.code, self.lanes
        made = code.variable(score * self.a.number("scale").broadcast(lanes))
        cap = self.a.number("softcap")
        with code.when(cap > 0.0):
            limit = cap.broadcast(lanes)
            made.set(math.tanh(made.get() / limit) * limit)
        return made.get()

    def seen(self, index: int, position: Value, stop: Value, score: Value) -> Value:
        """The score where the query sees the position: causal, in the window, in the span."""
        code = self.code
        order = code.constant(I32.of(self.lanes), list(range(self.lanes)))
        place = order + position.to(I32).broadcast(self.lanes)
        end = self.ends[index]
        last = (end < stop).select(end, stop).to(I32).broadcast(self.lanes)
        window = self.a.integer("window")
        first = window.equals(0).select(code.constant(I64, 0), end - window)
        inside = (place < last) & (place >= first.to(I32).broadcast(self.lanes))
        return inside.select(score, _LEAST)

    # Values.

    def add_values(self, first: Value, stop: Value) -> None:
        """Add the span's values, weighted, to the sums: a few vectors of the head at a time."""
        code = self.code
        for number, part in enumerate(self.head.parts):
            (lanes, begin, vectors), rest = self.head.columns(part)
            for count in _CHUNKS:
                end = vectors - (vectors - begin) % (lanes * count)
                with code.loop(begin, end, lanes * count) as column:
                    places = [column + lanes * i for i in range(count)]
                    self.add_columns((first, stop), places, lanes, number)
                begin = end
            with code.loop(*rest[1:]) as column:
                self.add_columns((first, stop), [column], 1, number)

    def add_columns(
        self, span: tuple[Value, Value], places: list[Value], lanes: int, number: int
    ) -> None:
        """The same of vectors at some columns, in the part of that number."""
        code, head, kind = self.code, self.head, F32.of(lanes)
        element, (first, stop) = head.cached.element, span
        held = [
            [code.variable(code.load(kind, sums, place * 4)) for place in places]
            for sums in self.sums
        ]
        with code.loop(first, stop) as position:
            row = code.offset(head.values, position * head.row_bytes)
            values = [
                code.load_floats(element.of(lanes), row, place * element.byte_count)
                for place in places
            ]
            scale = head.scales(row)[number]
            for scores, totals in zip(self.scores, held, strict=True):
                share = code.load(F32, scores, (position - first) * 4)
                share = share if scale is None else share * scale
                for value, total in zip(values, totals, strict=True):
                    total.set(value.fma(share.broadcast(lanes), total.get()))
        for sums, totals in zip(self.sums, held, strict=True):
            for place, total in zip(places, totals, strict=True):
                code.store(total.get(), sums, place * 4)

    def finish(self, index: int, factor: Value) -> None:
        """Sums over the weight, into the output."""
        code, head = self.code, self.head
        out = code.offset(
            self.a.pointer("out"),
            self.rows[index] * self.a.integer("out_stride") + self.offsets[index],
        )
        whole = code.constant(I64, 0), head.head_dim
        for lanes, begin, end in head.columns(whole):
            with code.loop(begin, end, lanes) as i:
                summed = code.load(F32.of(lanes), self.sums[index], i * 4)
                code.store(summed * factor.broadcast(lanes), out, i * 4)


def attention(
    query: Floats,
    keys: Floats,
    values: Floats,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Floats:
    """The twin: query [heads, rows, head_dim] at the end of keys and values [kv_heads, n, dim]."""
    heads, rows, _ = query.shape
    kv_heads, context, _ = keys.shape
    k, v = (np.repeat(array, heads // kv_heads, axis=0) for array in (keys, values))
    scores = query @ k.transpose(0, 2, 1) * np.float32(scale)
    if softcap is not None:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    row = context - rows + np.arange(rows)[:, None]
    seen = np.arange(context) <= row
    if window is not None:
        seen &= np.arange(context) > row - window
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    made: Floats = (weights / weights.sum(axis=2, keepdims=True)) @ v
    return made
