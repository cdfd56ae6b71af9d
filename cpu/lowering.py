"""From a graph to the table of kernel calls that a step runs: the calls of each op."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from cpu.bands import TILES_EACH, Band, Banded, bands, find_banded
from cpu.calls import Dynamic, Lowered, Place, Spread
from cpu.kernels import (
    activations,
    argmax,
    attention,
    batch,
    elementwise,
    embedding,
    linear,
    lookup,
    rows,
    tile_attention,
)
from cpu.kernels.blocks import block_of
from cpu.kernels.kernel import float_slot
from cpu.matrix_unit import MatrixUnit
from cpu.memory import Memory
from cpu.values import stride_of
from edge.bundle import Bundle
from edge.graph import (
    Add,
    Attention,
    Embed,
    Gate,
    Int8,
    Linear,
    Norm,
    Op,
    Rope,
    Softcap,
    Take,
)
from edge.kvcache import CacheFormat
from edge.planes import STEP, TILE, StoredTensor

# Rows that are better off with integer dot products than on a matrix unit.
FEW_ROWS = 16


class Lowering(MatrixUnit):
    """Lowers a graph once for few rows (`private`) or many."""

    def __init__(
        self,
        bundle: Bundle,
        memory: Memory,
        threads: int,
        max_rows: int,
        cache_format: CacheFormat,
        *,
        matrix_unit: bool,
        lookup_bits: Collection[int] = (),
    ) -> None:
        super().__init__(bundle, memory, threads, max_rows, matrix_unit=matrix_unit)
        self.cache_format, self.lookup_bits = cache_format, lookup_bits
        many = max_rows > FEW_ROWS and not matrix_unit
        self.banded = find_banded(self.graph, self.readers, self.is_quantized) if many else {}

    def is_quantized(self, op: Linear) -> bool:
        return self.tensors[op.weight].form.quantized

    def run(self) -> Lowered:
        """All calls, in the graph's order."""
        for subgraph in self.graph.subgraphs:
            if subgraph.kind == "head":
                self.barrier()
                self.lowered.body = len(self.lowered.calls)
            for op in subgraph.ops:
                self.lower(op)
                self.release(op)
                self.lowered.ends.append(len(self.lowered.calls))
        self.lowered.logits = len(self.lowered.calls)
        self.argmax()
        return self.lowered

    def lower(self, op: Op) -> None:
        if op.out not in self.banded:
            _LOWER[type(op)](self, op)
        elif (found := self.banded[op.out]) is not None:
            self.feed_forward(found)

    def embed(self, op: Embed) -> None:
        table = self.tensors[op.table]
        out = self.place(op.out, "split")
        form, width = table.form, table.shape[1]
        arguments: dict[str, int | Dynamic] = {
            "tokens": self.tokens_address,
            "out": out.address,
            "rows": Dynamic("rows"),
            "width": width,
            "groups": form.group_count(width) if form.quantized else 0,
            "steps": -(-width // STEP),
            "vocabulary": table.shape[0],
            "out_stride": out.stride,
            "scale": float_slot(op.scale),
        }
        self.call(embedding.embedding_kernel(form), arguments | self.weight_arguments(table))

    def norm(self, op: Norm) -> None:
        x = self.read(op.x)
        extra = {"weight": self.vector(op.weight), "eps": float_slot(op.eps)}
        if (block := self.fused_block(op, x)) is not None:
            layout = activations.RowLayout(x.width, block)
            out = self.quantized_place(op.out, layout, taken=x.taken)
            # nothing reads it as a value of its own
            self.converted[op.out, _quantized(block)] = self.places[op.out] = out
            kernel = activations.norm_quantize_kernel(block)
            self.call(kernel, self.row_arguments(x, out) | extra | layout.slots)
            return
        if self.is_whole(op, x) and self.alone_in_bfloat16(op, x):
            self.norm_bfloat16(op, x, extra)
            return
        out = self.place(op.out, self.row_spread(), taken=x.taken)
        extra["size"] = self.tensors[op.weight].shape[0]
        self.call(rows.norm_kernel(), self.row_arguments(x, out) | extra)

    def is_whole(self, op: Norm, x: Place) -> bool:
        """Whether a norm is of whole rows, not of runs in them."""
        return self.tensors[op.weight].shape[0] == x.width

    def fused_block(self, op: Norm, x: Place) -> int | None:
        """The block of the quantized rows that are all that is read of a whole row's norm."""
        if not self.is_whole(op, x):
            return None
        blocks = {self.block_read(reader, x) for reader in self.readers.get(op.out, [])}
        return blocks.pop() if len(blocks) == 1 else None

    def block_read(self, op: Op, x: Place) -> int | None:
        """The block of the quantized rows in which an op takes x; None where it takes others."""
        if not isinstance(op, Linear) or self.in_bfloat16(op, x):
            return None
        form = self.tensors[op.weight].form
        return block_of(form) if form.quantized else None

    def rope(self, op: Rope) -> None:
        x, spread = self.read(op.x), self.row_spread()
        out = self.over(op.out, spread, op.x) or self.place(op.out, spread)
        half = self.tensors[op.frequencies].shape[0]
        key = f"{op.frequencies}/{op.scale}"
        extra: dict[str, int | Dynamic] = {
            "cos": Dynamic(f"cos/{key}"),
            "sin": Dynamic(f"sin/{key}"),
            "head_dim": op.head_dim,
            "half": half,
            "position": Dynamic("position"),
            "table_stride": 4 * half,
        }
        self.call(rows.rope_kernel(), self.row_arguments(x, out) | extra)

    def int8(self, op: Int8) -> None:
        x = self.read(op.x)
        out = self.place(op.out, self.row_spread())
        out.one_scale = True
        self.call(rows.int8_kernel(), self.row_arguments(x, out))

    def linear(self, op: Linear) -> None:
        weight = self.tensors[op.weight]
        if self.in_bfloat16(op, self.places[op.x]):
            self.matrix_linear(op)
            return
        if weight.form.quantized:
            self.quantized_linear(op, weight, self.quantize(op.x, block_of(weight.form)))
            return
        x = self.read(op.x)
        out = self.place(op.out, "sliced", taken=x.taken)
        arguments: dict[str, int | Dynamic] = {
            "x": x.address,
            "values": self.memory.part(self.bundle, weight, "values"),
            "bias": self.bias(op),
            "out": out.address,
            "rows": self.row_count(out),
            "width": x.width,
            "tiles": -(-out.width // TILE),
            "outputs": out.width,
            "x_stride": x.stride,
            "out_stride": out.stride,
            "x_private": x.private,
        }
        self.call(linear.float_linear_kernel(weight.form), arguments)

    def quantized_linear(self, op: Linear, weight: StoredTensor, x: Place) -> None:
        looks_up = self.private and weight.form.bits in self.lookup_bits
        # their barrier is before there is a place for what is yet to be written
        tables = self.tables(op.x, x, _layout(weight)) if looks_up else None
        out = self.place(op.out, "sliced", taken=x.taken)
        arguments = self.product_arguments(op, x, Band.whole(out))
        if tables:
            arguments |= {"tables": tables.address, "tables_stride": tables.stride}
            self.call(lookup.lookup_kernel(weight.form), arguments)
        elif self.private or (x.taken and self.max_rows > FEW_ROWS):
            # of many rows the head is asked for one, hardly ever for more
            self.call(linear.linear_kernel(weight.form), arguments)
        else:
            self.batch(weight, arguments)

    def batch(self, weight: StoredTensor, arguments: dict[str, int | Dynamic]) -> None:
        """Products of many rows, with codes that are expanded once."""
        panels = self.memory.address("panels of codes", batch.PANEL_BYTES * self.threads)
        self.call(batch.batch_kernel(weight.form), arguments | {"panels": panels})

    def product_arguments(self, op: Linear, x: Place, band: Band) -> dict[str, int | Dynamic]:
        """What the kernels of quantized rows have in common."""
        weight = self.tensors[op.weight]
        layout = _layout(weight)
        return {
            "x": x.address,
            "bias": self.bias(op) + 4 * TILE * band.first,
            "out": band.place.address,
            "rows": self.row_count(band.place),
            "width": x.width,
            "tiles": band.tiles,
            "x_stride": x.stride,
            "out_stride": band.place.stride,
            "padded": layout.padded,
            "row_scales": layout.scales,
            "row_sums": layout.sums,
            "x_private": x.private,
        } | self.weight_arguments(weight, band.first)

    def tables(self, name: str, x: Place, layout: activations.RowLayout) -> Place:
        """Tables of partial sums of quantized rows, made once for all that read the value."""

        def make(name: str) -> Place:
            kernel, stride = lookup.tables_kernel(), lookup.tables_bytes(x.width)
            address = self.take(name, stride * self.max_rows)
            out = Place(address, x.width, stride, spread="split", taken=x.taken)
            arguments = self.row_arguments(x, out) | layout.slots
            self.call_of(kernel, arguments)
            return out

        return self.shared(name, f"tables of {layout.block}", make)

    def quantize(self, name: str, block: int) -> Place:
        """The value as quantized rows, made once for all that read it."""
        return self.shared(name, _quantized(block), lambda name: self.quantize_anew(name, block))

    def quantize_anew(self, name: str, block: int) -> Place:
        x = self.read(name)
        layout = activations.RowLayout(x.width, block)
        out = self.quantized_place(name, layout, taken=x.taken)
        extra = layout.slots | {"one_scale": int(x.one_scale)}
        self.call(activations.quantize_kernel(block), self.row_arguments(x, out) | extra)
        return out

    def quantized_place(
        self, name: str, layout: activations.RowLayout, *, taken: bool = False
    ) -> Place:
        """Make a place for quantized rows."""
        copies = self.threads if self.private else 1
        size = layout.byte_count * self.max_rows
        address = self.take(name, size * copies + TILE)
        private = size if self.private else 0
        return Place(address, layout.width, layout.byte_count, private, self.row_spread(), taken)

    def attention(self, op: Attention) -> None:
        query, key, value = (self.read(name) for name in op.inputs())
        cache = self.graph.caches[op.cache]
        arguments: dict[str, int | Dynamic] = {
            **attention.head_slots(op, cache, query.width),
            "query": query.address,
            "key": key.address,
            "value": value.address,
            "keys": Dynamic(f"keys/{op.cache}"),
            "values": Dynamic(f"values/{op.cache}"),
            "rows": Dynamic("rows"),
            "position": Dynamic("position"),
            "capacity": Dynamic("capacity"),
            "query_stride": query.stride,
            "key_stride": key.stride,
            "value_stride": value.stride,
            "query_private": query.private,
            "key_private": key.private,
            "value_private": value.private,
        }
        kernel = attention.attention_kernel(self.cache_format)
        if self.matrix_unit:
            kernel = tile_attention.tile_attention_kernel(self.cache_format)
            most = self.max_rows * query.width // (cache.head_dim * cache.kv_heads)
            arguments |= tile_attention.work_slots(cache, self.cache_format, most, self.threads)
            self.call_of(attention.append_kernel(self.cache_format), arguments)
            self.barrier()  # threads may share a head
        size = arguments["scratch_stride"]
        assert isinstance(size, int)
        out = self.place(op.out, "split")
        arguments |= {"out": out.address, "out_stride": out.stride}
        arguments["scratch"] = self.memory.address(f"scratch/{size}", size * self.threads)
        self.call_of(kernel, arguments)

    def elementwise(self, op: Gate | Add | Softcap) -> None:
        if op.out in self.places:  # a sum, made with one of its terms
            return
        a, b = op.inputs()[0], op.inputs()[-1]
        left, right = self.read(a, "sliced"), self.read(b, "sliced")
        if isinstance(op, Gate) and self.alone_in_bfloat16(op, left):
            self.gate_bfloat16(op, left, right)
            return
        out = self.over(op.out, "sliced", a, b) or self.place(op.out, "sliced", taken=left.taken)
        self.element_by_element(op, left, right, Band.whole(out))

    def element_by_element(
        self, op: Gate | Add | Softcap, left: Place, right: Place, band: Band
    ) -> None:
        kernel, number = elementwise.kernel_of(op)
        out = band.place
        arguments: dict[str, int | Dynamic] = {
            "a": left.address,
            "b": right.address,
            "out": out.address,
            "rows": self.row_count(out),
            "tiles": band.tiles,
            "a_stride": left.stride,
            "b_stride": right.stride,
            "out_stride": out.stride,
            "number": number,
            "a_private": left.private,
            "b_private": right.private,
        }
        self.call(kernel, arguments)

    def feed_forward(self, found: Banded) -> None:
        """Gate, up, their product and its quantization, a band of columns after another."""
        layout = _layout(self.tensors[found.reader.weight])
        inputs = [
            (op, self.quantize(op.x, block_of(self.tensors[op.weight].form)))
            for op in (found.gate, found.up)
        ]
        out = self.quantized_place(found.product.out, layout)
        each = TILES_EACH * self.threads
        stride = stride_of(TILE * each)
        blocks = [self.pool.take(stride * self.max_rows, self.barriers) for _ in inputs]
        gate, up = (Place(block.address, TILE * each, stride) for block in blocks)
        for band in bands(layout.width, each, gate):
            if band.first and band.tiles < each:
                self.barrier()  # its slices were others' in the band before
            for (op, x), place in zip(inputs, (gate, up), strict=True):
                arguments = self.product_arguments(op, x, replace(band, place=place))
                self.batch(self.tensors[op.weight], arguments)
            self.element_by_element(found.product, gate, up, band)
            self.quantize_band(band, layout, out)
        for block in blocks:
            self.pool.give(block, self.barriers)
        self.converted[found.product.out, _quantized(layout.block)] = out
        self.places[found.product.out] = out

    def quantize_band(self, band: Band, layout: activations.RowLayout, out: Place) -> None:
        """A band of a value to its columns of quantized rows."""
        assert isinstance(out.address, int)
        start = TILE * band.first
        if band.tiles % (-(-layout.block // TILE) * self.threads):
            self.barrier()  # blocks may be of two threads' slices
        arguments: dict[str, int | Dynamic] = {
            "x": band.place.address,
            "out": out.address + start,
            "rows": self.row_count(out),
            "tiles": band.tiles,
            "width": min(TILE * band.tiles, layout.width - start),
            "x_stride": band.place.stride,
            "out_stride": out.stride,
            "padded": layout.padded,
            "scales": layout.scales + start // layout.block * 4 - start,
            "sums": layout.sums + start // layout.block * 8 - start,
        }
        self.call(activations.quantize_sliced_kernel(layout.block), arguments)

    def over(self, name: str, spread: Spread, *inputs: str) -> Place | None:
        """The place of an input that nothing else reads: each thread writes what it has read."""
        if spread == "private":
            return None
        for source in inputs:
            place = self.places[source]
            alone = self.owners[source] == source and len(self.readers[source]) == 1
            if alone and not place.private:
                self.blocks[name] = self.blocks.pop(source)
                self.places[name] = replace(place, spread=spread)
                return self.places[name]
        return None

    def take_rows(self, op: Take) -> None:
        """No work: the head reads the last rows where they are."""
        self.barrier()
        x = self.places[op.x]
        assert isinstance(x.address, int)
        self.places[op.out] = replace(
            x, address=Dynamic("skipped_rows", x.address, x.stride), taken=True
        )

    def argmax(self) -> None:
        """The best token of each thread's slice, where there is one row of logits."""
        x = self.read(self.graph.last.out, "sliced")
        arguments = {"x": x.address, "out": self.best_address, "width": x.width}
        self.call(argmax.argmax_kernel(), arguments)


def _layout(weight: StoredTensor) -> activations.RowLayout:
    """How the rows are quantized that a matrix is multiplied with."""
    return activations.RowLayout(weight.shape[1], block_of(weight.form))


def _quantized(block: int) -> str:
    """The kind of a value in another form that quantized rows are."""
    return f"b{block}"


_LOWER: dict[type[Op], Callable[..., None]] = {
    Embed: Lowering.embed,
    Norm: Lowering.norm,
    Rope: Lowering.rope,
    Int8: Lowering.int8,
    Linear: Lowering.linear,
    Attention: Lowering.attention,
    Gate: Lowering.elementwise,
    Add: Lowering.elementwise,
    Softcap: Lowering.elementwise,
    Take: Lowering.take_rows,
}
