"""Attention of many rows on a matrix unit: scores and sums of values are products of tiles.

A product of float32 is some of bfloat16: both sides are split into terms, each the nearest to what
those before leave, and of all products of terms those are summed up whose numbers, from 0 on, add
up to less than how many terms there are. Two terms, three products: what float16 or int8 caches
hold is exact, and a product off by 2^-14 of it at most, where a single one is by 2^-7: on a small
trained model at 2 bits that alone is a KL divergence of 1e-3 (emulated). With a cache of float32,
which is for whoever wants it exact, it is three terms, six products, and 2^-22.

Threads take key/value heads, or parts of one where heads are no multiple of threads: then each of
those who share it takes every so-manieth block of queries, since later ones see more. A span of
positions at a time is packed into tiles, once for all queries of the head. Tiles that no query of
a block sees are left out.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator

from cpu.codegen.isa import Tiles
from cpu.codegen.language import F32, I32, I64, Code, Value
from cpu.codegen.masked import load_first, store_first
from cpu.codegen.math import exp2, tanh
from cpu.codegen.transpose import transposed_words
from cpu.kernels.attention import HeadCache, cached_as
from cpu.kernels.kernel import Arguments, Kernel, Thread, maximum, minimum
from edge.graph import Cache
from edge.kvcache import CacheFormat

SLOTS = (
    *("query", "keys", "values", "out", "rows", "position"),
    *("heads", "kv_heads", "head_dim", "capacity", "window"),
    *("query_stride", "out_stride", "scale", "softcap", "parts", "scratch", "scratch_stride"),
)

# Positions that are packed together: 256 KB at a head of 128.
SPAN = 256

# Into how many terms of bfloat16 values are split.
TERMS: dict[CacheFormat, int] = {"f32": 3, "f16": 2, "int8": 2}

# Of the matrix unit: rows and columns of a tile, what is summed up in a product, bytes.
_SIDE, _DEPTH, _TILE_BYTES = 16, 32, 1024

# Queries, and keys or values' columns, that are worked on together: four tiles of sums.
_BLOCK, _BLOCK_BYTES = 2 * _SIDE, 4 * _TILE_BYTES

# A score that is not seen, and the largest of none: less, so that 2^(the one - the other) is 0.
_UNSEEN, _NONE = -2e30, -1e30

# Bytes for what is known of a query between spans, and where in them: weights' sums lane by lane,
# the largest score, and by what all before is to be multiplied.
_STATE_BYTES, _PEAK, _SHRINK = 128, 64, 68

# What memory brings at a time, in bytes.
_LINE = 64

_SCORES_BYTES = 4 * _BLOCK * SPAN


def work_slots(
    cache: Cache, cache_format: CacheFormat, queries: int, threads: int
) -> dict[str, int]:
    """The slots that say how threads work: of `queries` of a head, which are rows by its members.

    `parts` of a head are so many that all threads get as many.
    """
    return {
        "parts": threads // math.gcd(cache.kv_heads, threads),
        "scratch_stride": scratch_bytes(cache.head_dim, TERMS[cache_format], queries),
    }


def scratch_bytes(head_dim: int, terms: int, queries: int) -> int:
    """Memory that a thread works in, for so many queries of a head."""
    blocks, width = -(-queries // _BLOCK), -(-head_dim // _DEPTH) * _DEPTH
    packed = 2 * terms * (width * (2 * SPAN + _BLOCK) + _BLOCK * SPAN)
    return packed + _SCORES_BYTES + blocks * _BLOCK * (4 * width + _STATE_BYTES)


def tile_attention_kernel(cache_format: CacheFormat) -> Kernel:
    """As `attention.attention_kernel`, of keys and values that are all in the cache already.

    `scratch` has `scratch_bytes` for every thread. See `work_slots`.
    """

    def body(code: Code, a: Arguments, thread: Thread) -> None:
        tiles, parts = code.isa.tiles, a.integer("parts")
        assert tiles is not None
        tiles.configure(code)
        first, last = thread.share(a.integer("kv_heads") * parts)
        with code.loop(first // parts, (last + (parts - 1)) // parts) as kv_head:
            begin, end = first - kv_head * parts, minimum(last - kv_head * parts, parts)
            own = maximum(begin, code.constant(I64, 0)), end
            _Head(code, a, thread, kv_head, cache_format, own).run()
        tiles.release(code)

    return Kernel(f"tile_attention_{cache_format}", SLOTS, body)


class _Operand:
    """One side of products: tiles, [terms, size / 16, depth / 32], of 16 rows or columns."""

    def __init__(self, memory: Value, terms: int, size: Value, depth: Value) -> None:
        self.memory, self.code, self.terms = memory, memory.code, terms
        self.group_bytes, self.term_bytes = depth * (2 * _SIDE), size * depth * 2

    def tile(self, group: Value | int, depth: Value) -> Value:
        """The first term of a tile; the others are `term_bytes` on."""
        return self.code.offset(self.memory, self.group_bytes * group + depth * (2 * _SIDE))

    def put(self, first: Value, second: Value, place: Value) -> None:
        """Two float32 vectors as a row of pairs."""
        tiles = self.code.isa.tiles
        assert tiles is not None
        for term in range(self.terms):
            made = tiles.paired(self.code, first, second)
            self.code.store(made, self.memory, place + self.term_bytes * term)
            first, second = (value - _nearest(value) for value in (first, second))


def _nearest(values: Value) -> Value:
    """The bfloat16 of `Tiles.paired`, as float32."""
    return ((values.cast(I32.of(_SIDE)) + 0x8000) & -0x10000).cast(F32.of(_SIDE))


class _Head(HeadCache):
    """Writes the code for the blocks of queries of a key/value head that are this thread's own."""

    INPUTS = ()

    def __init__(
        self,
        code: Code,
        a: Arguments,
        thread: Thread,
        kv_head: Value,
        cache_format: CacheFormat,
        parts: tuple[Value, Value],
    ) -> None:
        super().__init__(code, a, thread, kv_head, cached_as(cache_format))
        self.terms, self.parts_taken = TERMS[cache_format], parts
        self.group = a.integer("heads") // a.integer("kv_heads")
        self.queries = a.integer("rows") * self.group
        self.end = a.integer("position") + a.integer("rows")
        width = self.width = (self.head_dim + (_DEPTH - 1)) // _DEPTH * _DEPTH
        self.scratch = code.offset(a.pointer("scratch"), thread.index * a.integer("scratch_stride"))
        span, block = code.constant(I64, SPAN), code.constant(I64, _BLOCK)
        self.packed_keys = self.operand(span, width)
        self.packed_values = self.operand(width, span)
        self.packed_queries = self.operand(block, width)
        self.weights = self.operand(block, span)
        self.scores = self.take(_SCORES_BYTES)
        self.blocks = (self.queries + (_BLOCK - 1)) // _BLOCK
        self.state = self.take(self.blocks * (_BLOCK * _STATE_BYTES))
        self.sums = self.scratch
        self.start = self.first_seen(code.constant(I64, 0)) // _DEPTH * _DEPTH
        # where one span is all, a block is done before the next begins, and leaves it its memory
        alone = self.end <= self.start + SPAN
        self.sum_bytes = alone.select(code.constant(I64, 0), width * (4 * _BLOCK))

    def operand(self, size: Value, depth: Value) -> _Operand:
        memory = self.take(size * depth * (2 * self.terms))
        return _Operand(memory, self.terms, size, depth)

    def take(self, byte_count: int | Value) -> Value:
        """The next part of the scratch memory."""
        taken = self.scratch
        self.scratch = self.code.offset(taken, byte_count)
        return taken

    def run(self) -> None:
        """Span by span of positions, from the first that any query sees."""
        code = self.code
        with self.own_blocks() as block:
            block.begin()
        with code.loop(self.start, self.end, SPAN) as first:
            stop = minimum(first + SPAN, self.end)
            self.pack_keys(first, stop)
            self.pack_values(first, stop)
            with self.own_blocks() as block:
                block.attend(first, stop)

    @contextlib.contextmanager
    def own_blocks(self) -> Iterator[_Block]:
        """Loop over the blocks of queries, of each `parts` those that are taken here."""
        code, parts = self.code, self.a.integer("parts")
        first, last = self.parts_taken
        with (
            code.loop(0, self.blocks, parts) as base,
            code.loop(base + first, minimum(base + last, self.blocks)) as block,
        ):
            yield _Block(self, block)

    def first_seen(self, row: Value) -> Value:
        """The first position that a row of queries sees."""
        window, end = self.a.integer("window"), self.a.integer("position") + row + 1
        return (window.equals(0) | (end < window)).select(self.code.constant(I64, 0), end - window)

    # Keys and values of a span.

    def pack_keys(self, first: Value, stop: Value) -> None:
        """Pairs along the head, each key in a column; rows first, which are then transposed."""
        code, operand, line = self.code, self.packed_keys, 4 * _SIDE
        with code.loop(0, stop - first, _SIDE) as key, code.loop(0, self.width, _DEPTH) as column:
            place = key // _SIDE * operand.group_bytes + column * (2 * _SIDE)
            with code.loop(0, _SIDE) as row:
                position = minimum(first + key + row, stop - 1)
                pair = [self.values_at(self.keys, position, column + i) for i in (0, _SIDE)]
                operand.put(pair[0], pair[1], place + row * line)
            for number in range(self.terms):
                term = place + operand.term_bytes * number
                rows = [
                    code.load(I32.of(_SIDE), operand.memory, term + i * line) for i in range(_SIDE)
                ]
                for i, made in enumerate(transposed_words(rows)):
                    code.store(made, operand.memory, term + i * line)

    def pack_values(self, first: Value, stop: Value) -> None:
        """Pairs along positions, which are 16 apart as in `_Block.soften`."""
        code, operand = self.code, self.packed_values
        with code.loop(0, self.width, _SIDE) as column, code.loop(0, stop - first, _DEPTH) as key:
            place = column // _SIDE * operand.group_bytes + key * (2 * _SIDE)
            with code.loop(0, _SIDE) as row:
                positions = [minimum(first + key + row + i, stop - 1) for i in (0, _SIDE)]
                pair = [self.values_at(self.values, position, column) for position in positions]
                operand.put(pair[0], pair[1], place + row * (4 * _SIDE))

    def values_at(self, memory: Value, position: Value, column: Value) -> Value:
        """16 values of a row of the cache, from a column on; zeros behind the last."""
        code, element = self.code, self.cached.element
        row = code.offset(memory, position * self.row_bytes)
        kind, count = element.of(_SIDE), self.head_dim - column
        held = load_first(row, kind, column * element.byte_count, count).to(F32)
        if not self.cached.scaled:
            return held
        order = code.constant(I32.of(_SIDE), list(range(_SIDE)))
        left = order < (self.head_dim // 2 - column).to(I32).broadcast(_SIDE)
        first, second = (scale.broadcast(_SIDE) for scale in self.scales(row) if scale is not None)
        return held * left.select(first, second)


class _Block:
    """Writes the code for 32 queries of a head: row * group + member, the last one repeated."""

    def __init__(self, head: _Head, block: Value) -> None:
        self.head, self.code, self.a = head, head.code, head.a
        self.first = block * _BLOCK
        self.count = minimum(head.queries - self.first, head.code.constant(I64, _BLOCK))
        self.sums = head.code.offset(head.sums, block * head.sum_bytes)
        self.state = head.code.offset(head.state, self.first * _STATE_BYTES)

    def begin(self) -> None:
        """No weights."""
        code = self.code
        zeros = code.constant(F32.of(_SIDE), 0.0)
        with code.loop(0, _BLOCK * _STATE_BYTES, _STATE_BYTES) as place:
            code.store(zeros, self.state, place)
            code.store(code.constant(F32, _NONE), self.state, place + _PEAK)

    def row_and_member(self, index: Value) -> tuple[Value, Value]:
        query = minimum(self.first + index, self.head.queries - 1)
        return query // self.head.group, query % self.head.group

    def attend(self, first: Value, stop: Value) -> None:
        """Take what these queries see of a span, in whole tiles; in the first one, sums begin."""
        code, head, zero = self.code, self.head, self.code.constant(I64, 0)
        rows = [self.row_and_member(zero + i)[0] for i in (0, _BLOCK - 1)]
        begin = head.first_seen(rows[0]) - first
        fresh, begin = begin >= 0, maximum(begin, zero) // _DEPTH * _DEPTH
        last = self.a.integer("position") + rows[1] + 1
        end = _whole(minimum(last, stop) - first)
        with code.when(begin < end):
            self.pack()
            self.make_scores(begin, end)
            self.cap(begin, end)
            # apart, so that one query's largest score is not waited for before the next's
            with code.loop(0, _BLOCK) as index:
                self.find_peak(index, first, begin, end)
            with code.loop(0, _BLOCK) as index:
                self.soften(index, begin, end, fresh)
                self.ask(index)
            self.add_values(begin, end, fresh)
            with code.when(last <= stop):
                self.finish()

    def ask(self, index: Value) -> None:
        """Have memory bring where a query's values go, and the query in its place a block ahead."""
        ahead = index + self.a.integer("parts") * _BLOCK
        query, out = self.place(ahead, "query"), self.place(index, "out")
        with self.code.loop(0, self.head.head_dim * 4, _LINE) as line:
            self.code.prefetch(query, line)
            self.code.prefetch(out, line)

    def pack(self) -> None:
        """Queries times the scale, so that scores are exponents of 2."""
        code, head, operand = self.code, self.head, self.head.packed_queries
        scale = (self.a.number("scale") * math.log2(math.e)).broadcast(_SIDE)
        with code.loop(0, _BLOCK) as index:
            source, line = self.place(index, "query"), index % _SIDE * (4 * _SIDE)
            with code.loop(0, head.width, _DEPTH) as column:
                pair = [
                    load_first(source, F32.of(_SIDE), i * 4, head.head_dim - i) * scale
                    for i in (column, column + _SIDE)
                ]
                place = index // _SIDE * operand.group_bytes + column * (2 * _SIDE)
                operand.put(pair[0], pair[1], place + line)

    def place(self, index: Value, name: str) -> Value:
        """Where a query is, or what comes of it."""
        row, member = self.row_and_member(index)
        column = (self.head.kv_head * self.head.group + member) * self.head.head_dim
        stride = self.a.integer(f"{name}_stride")
        return self.code.offset(self.a.pointer(name), row * stride + column * 4)

    def make_scores(self, begin: Value, end: Value) -> None:
        """Blocks of 32 queries by 32 keys."""
        code, head = self.code, self.head
        tiles = code.isa.tiles
        assert tiles is not None
        with code.loop(begin, end, _BLOCK) as key:
            _clear_sums(code, tiles)
            zero = code.constant(I64, 0)
            sides = head.packed_queries, (0, zero), head.packed_keys, (key // _SIDE, zero)
            _multiply(code, tiles, *sides, head.width)
            _store_sums(code, tiles, code.offset(head.scores, key * (4 * _BLOCK)))

    def cap(self, begin: Value, end: Value) -> None:
        """Scores with the soft cap where there is one; of exponents of 2, as they are."""
        code, kind = self.code, F32.of(_SIDE)
        limit = self.a.number("softcap") * math.log2(math.e)
        with (
            code.when(limit > 0.0),
            code.loop(begin * (4 * _BLOCK), end * (4 * _BLOCK), 4 * _SIDE) as place,
        ):
            score = code.load(kind, self.head.scores, place) / limit
            code.store(tanh(score) * limit, self.head.scores, place)

    def hide(self, index: Value, seen: tuple[Value, Value], begin: Value, end: Value) -> None:
        """Make little of the scores of a query that are not seen, at both ends."""
        code, kind = self.code, F32.of(_SIDE)
        order = code.constant(I32.of(_SIDE), list(range(_SIDE)))
        low, high = (limit.to(I32).broadcast(_SIDE) for limit in seen)
        inner = minimum(_whole(maximum(seen[0], begin)), end)
        outer = maximum(minimum(seen[1], end).signed_shift(5) * _DEPTH, inner)
        for first, last in ((begin, inner), (outer, end)):
            with self.places(index, first, last) as (key, places):
                for half, place in enumerate(places):
                    number = order + (key + half * _SIDE).to(I32).broadcast(_SIDE)
                    inside = (number >= low) & (number < high)
                    score = code.load(kind, self.head.scores, place)
                    code.store(inside.select(score, _UNSEEN), self.head.scores, place)

    def find_peak(self, index: Value, first: Value, begin: Value, end: Value) -> None:
        """The largest score of a query so far, and by what its sums shrink when it has grown."""
        code = self.code
        row, _ = self.row_and_member(index)
        seen = self.head.first_seen(row) - first, self.a.integer("position") + row + 1 - first
        self.hide(index, seen, begin, end)
        state = code.offset(self.state, index * _STATE_BYTES)
        before = code.load(F32, state, _PEAK)
        largest = code.variable(before.broadcast(_SIDE))
        with self.places(index, begin, end) as (_, places):
            left, right = (code.load(F32.of(_SIDE), self.head.scores, place) for place in places)
            largest.set(largest.get().maximum(left.maximum(right)))
        peak = largest.get().largest()
        code.store(peak, state, _PEAK)
        code.store(exp2(before - peak), state, _SHRINK)

    def soften(self, index: Value, begin: Value, end: Value, fresh: Value) -> None:
        """Scores of a query to weights, and its sums so far to the new largest score."""
        code, head, kind = self.code, self.head, F32.of(_SIDE)
        state = code.offset(self.state, index * _STATE_BYTES)
        peak, shrink = (code.load(F32, state, place) for place in (_PEAK, _SHRINK))
        total = code.variable(code.load(kind, state) * shrink)
        line = index // _SIDE * head.weights.group_bytes + index % _SIDE * (4 * _SIDE)
        with self.places(index, begin, end) as (key, places):
            left, right = (exp2(code.load(kind, head.scores, place) - peak) for place in places)
            total.set(total.get() + (left + right))
            head.weights.put(left, right, line + key * (2 * _SIDE))
        code.store(total.get(), state)
        with code.when(fresh.equals(0)), self.places(index, 0, head.width) as (_, places):
            for place in places:
                code.store(code.load(kind, self.sums, place) * shrink, self.sums, place)

    @contextlib.contextmanager
    def places(
        self, index: Value, begin: Value | int, end: Value
    ) -> Iterator[tuple[Value, list[Value]]]:
        """Loop over a query's scores or sums, 32 at a time: of what on, and where each 16 are."""
        line = index // _SIDE * (2 * _TILE_BYTES) + index % _SIDE * (4 * _SIDE)
        with self.code.loop(begin, end, _BLOCK) as first:
            place = first * (4 * _BLOCK) + line
            yield first, [place, place + _TILE_BYTES]

    def add_values(self, begin: Value, end: Value, fresh: Value) -> None:
        """Weights times values, 32 columns of these at a time."""
        code, head = self.code, self.head
        tiles = code.isa.tiles
        assert tiles is not None
        with code.loop(0, head.width, _BLOCK) as column:
            sums = code.offset(self.sums, column * (4 * _BLOCK))
            with code.when(fresh):
                _clear_sums(code, tiles)
            with code.when(fresh.equals(0)):
                _load_sums(code, tiles, sums)
            sides = head.weights, (0, begin), head.packed_values, (column // _SIDE, begin)
            _multiply(code, tiles, *sides, end - begin)
            _store_sums(code, tiles, sums)

    def finish(self) -> None:
        """Sums over the weights', into the output."""
        code, head, kind = self.code, self.head, F32.of(_SIDE)
        with code.loop(0, self.count) as index:
            total = code.load(kind, self.state, index * _STATE_BYTES).total()
            factor, out = code.constant(F32, 1.0) / total, self.place(index, "out")
            with self.places(index, 0, head.width) as (first, places):
                for half, place in enumerate(places):
                    made, column = code.load(kind, self.sums, place) * factor, first + half * _SIDE
                    store_first(out, made, column * 4, head.head_dim - column)


def _multiply(
    code: Code,
    tiles: Tiles,
    a: _Operand,
    a_place: tuple[int, Value],
    b: _Operand,
    b_place: tuple[Value, Value],
    depth: Value,
) -> None:
    """Add to four tiles of sums the products of 32 rows of a and 32 columns of b."""
    line = code.constant(I64, 4 * _SIDE)
    rows, columns = (
        [side.tile(place[0] + i, place[1]) for i in range(2)]
        for side, place in ((a, a_place), (b, b_place))
    )

    def load(first: int, pointers: list[Value], step: Value) -> None:
        for i, pointer in enumerate(pointers):
            tiles.load(code, first + i, code.offset(pointer, step), line)

    with code.loop(0, depth * (2 * _SIDE), _TILE_BYTES) as step:
        loaded = -1, -1
        for i, j in _term_pairs(a.terms):
            if loaded[0] != i:
                load(4, rows, step + a.term_bytes * i)
            if loaded[1] != j:
                load(6, columns, step + b.term_bytes * j)
            loaded = i, j
            for row, column in itertools.product(range(2), range(2)):
                tiles.dot(code, 2 * row + column, 4 + row, 6 + column)


def _term_pairs(terms: int) -> Iterator[tuple[int, int]]:
    """Terms of both sides that are multiplied, in an order in which mostly one side changes."""
    for i in range(terms):
        others = range(terms - i)
        yield from ((i, j) for j in (others if i % 2 else reversed(others)))


def _whole(keys: Value) -> Value:
    """Rounded up to the depth of a tile; negative numbers stay so."""
    return (keys + (_DEPTH - 1)).signed_shift(5) * _DEPTH


def _clear_sums(code: Code, tiles: Tiles) -> None:
    for index in range(4):
        tiles.clear(code, index)


def _load_sums(code: Code, tiles: Tiles, memory: Value) -> None:
    """Four tiles of sums, on end; so are they stored."""
    for index in range(4):
        tile = code.offset(memory, index * _TILE_BYTES)
        tiles.load(code, index, tile, code.constant(I64, 4 * _SIDE))


def _store_sums(code: Code, tiles: Tiles, memory: Value) -> None:
    for index in range(4):
        tile = code.offset(memory, index * _TILE_BYTES)
        tiles.store(code, index, tile, code.constant(I64, 4 * _SIDE))
