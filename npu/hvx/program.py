"""A bundle's decode step on an emulated Hexagon: the whole step, all layers, in one request.

The weights file is mapped once. The host's KV cache is the master, since another target may have
filled it: what it holds goes to the device before a step, the new row comes back after it. (A
device shares the memory.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from cpu.kernels import attention, elementwise, embedding, linear, rows
from cpu.kernels.kernel import Kernel
from edge.bundle import Bundle
from edge.formats import Format
from edge.graph import GateFunction, Rope
from edge.kvcache import CacheFormat, KVCache
from edge.target import Target
from npu.hvx import build, gemv, inner, tables
from npu.hvx.emulator import Emulator
from npu.hvx.isa import Hexagon, table_for
from npu.hvx.lowering import Dynamic, Lowering, Step, angles_name

# Hardware threads with a vector context, each of which takes a share of a kernel's work.
THREADS = 4

# Whole vectors of the last row may be read.
_PADDING = 128

# A row of the table of calls: kernel, arguments, threads.
_ROW_BYTES = 12


def families(formats: Iterable[Format]) -> list[list[Kernel]]:
    """Kernels of decode steps by what is compiled together: common ones, and those of a format."""
    return [common_kernels(), *(format_kernels(form) for form in formats)]


def common_kernels() -> list[Kernel]:
    """What every model may need."""
    return [
        rows.norm_kernel(),
        rows.rope_kernel(),
        rows.int8_kernel(),
        elementwise.add_kernel(),
        elementwise.softcap_kernel(),
        *(elementwise.gate_kernel(function) for function in get_args(GateFunction)),
        *(attention.attention_kernel(form) for form in get_args(CacheFormat)),
        tables.quantize_kernel(),
        tables.tables_kernel(),
        tables.split_kernel(),
    ]


def format_kernels(form: Format) -> list[Kernel]:
    """What tensors of a format need."""
    multiply = gemv.lookup_kernel if form.quantized else linear.float_linear_kernel
    return [embedding.embedding_kernel(form), multiply(form)]


def built(isa: Hexagon, formats: Iterable[Format]) -> Path:
    """The emulated device's program with the kernels for these formats, kept in the cache."""
    from cpu.codegen.cache import cache_folder

    objects = [build.start_object(isa), build.runtime_object(isa)]
    forms = list(formats)
    objects += [build.kernel_object(isa, family) for family in families(forms)]
    objects += [build.assembled(isa, text) for text in inner.assemblies(forms)]
    key = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in objects))
    path = cache_folder() / f"{key.hexdigest()}.hexagon"
    if not path.is_file():
        build.program(objects, path)
    return path


class HvxProgram:
    """A program on an emulated Hexagon. See `edge.backend.Program`."""

    chunks = (1,)

    def __init__(self, bundle: Bundle, target: Target, threads: int | None) -> None:
        self.target = target
        self._bundle = bundle
        self._threads = threads or THREADS
        formats = {str(record.form): record.form for record in bundle.manifest.tensors.values()}
        self.device = Emulator(built(table_for(target), formats.values()))
        self._weights = self.device.map_file(bundle.weights_path)
        self._steps: dict[CacheFormat, Calls] = {}
        self._caches: dict[str, tuple[int, int]] = {}

    def run(
        self, tokens: NDArray[np.int32], count: int, cache: KVCache, logit_rows: int
    ) -> NDArray[np.float32]:
        """Run one token. See `edge.backend.Program.run`."""
        assert count == 1, count
        calls, places = self.prepare(tokens, cache)
        calls.run(0, len(calls.step.calls) if logit_rows else calls.step.body)
        self._read_cache(cache, places)
        cache.advance(1)
        shape = logit_rows, self._bundle.graph.vocabulary
        return self.device.read(calls.step.logits, np.float32, shape)

    def prepare(self, tokens: NDArray[np.int32], cache: KVCache) -> tuple[Calls, dict[str, int]]:
        """A step's calls, with all that they read in place; and where keys and values are."""
        calls = self._calls(cache.form)
        self._write_angles(calls, cache.length)
        self.device.write(calls.lowering.buffers["tokens"], tokens[:1])
        places = self._write_cache(cache)
        calls.write(places | {"position": cache.length, "capacity": cache.capacity})
        return calls, places

    def _calls(self, form: CacheFormat) -> Calls:
        if form not in self._steps:
            lowering = Lowering(self._bundle, self.device, self._weights, form, self._threads)
            self._steps[form] = Calls(self.device, lowering)
        return self._steps[form]

    def _write_angles(self, calls: Calls, position: int) -> None:
        written = set()
        for op in self._bundle.graph.ops():
            if isinstance(op, Rope) and angles_name("cos", op) not in written:
                frequencies = self._bundle.tensor(op.frequencies).parts["values"]
                turns = np.float32(position) * frequencies
                for name, function in (("cos", np.cos), ("sin", np.sin)):
                    values = function(turns) * np.float32(op.scale)
                    place = calls.lowering.buffers[angles_name(name, op)]
                    self.device.write(place, values.astype(np.float32))
                    written.add(angles_name(name, op))

    def _write_cache(self, cache: KVCache) -> dict[str, int]:
        """Copy the filled part to the device; returns where keys and values are."""
        places = {}
        for kind, arrays in (("keys", cache.keys), ("values", cache.values)):
            for index, array in enumerate(arrays):
                name = f"{kind}/{index}"
                size, place = self._caches.get(name, (0, 0))
                if size < array.nbytes:
                    place = self.device.allocate(array.nbytes + _PADDING)
                    self._caches[name] = array.nbytes, place
                for head in range(len(array)):
                    at = place + head * array[head].nbytes
                    self.device.write(at, array[head, : cache.length])
                places[name] = place
        return places

    def _read_cache(self, cache: KVCache, places: dict[str, int]) -> None:
        """Copy the row that the step appended back."""
        for kind, arrays in (("keys", cache.keys), ("values", cache.values)):
            for index, array in enumerate(arrays):
                row = array[0, 0]
                for head in range(len(array)):
                    at = places[f"{kind}/{index}"] + head * array[head].nbytes
                    at += cache.length * row.nbytes
                    array[head, cache.length] = self.device.read(at, array.dtype, row.shape)


class Calls:
    """The calls of a step on the device, with their changing arguments."""

    def __init__(self, device: Emulator, lowering: Lowering) -> None:
        self._device = device
        self.lowering = lowering
        self.step: Step = lowering.run()
        calls = self.step.calls
        counts = [len(call.arguments) for call in calls]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._values = np.zeros(starts[-1], np.int64)
        self._changing: list[tuple[int, str]] = []
        for start, call in zip(starts, calls, strict=False):
            for place, value in enumerate(call.arguments.values(), int(start)):
                if isinstance(value, Dynamic):
                    self._changing.append((place, value.name))
                else:
                    self._values[place] = value
        self._arguments = device.allocate(self._values.nbytes)
        rows = [
            (device.symbols[call.kernel.name], self._arguments + 8 * int(start), call.threads)
            for start, call in zip(starts, calls, strict=False)
        ]
        self._table = device.put(np.array(rows, np.uint32))

    def write(self, values: dict[str, int]) -> None:
        """Give the calls the values of a step, by name."""
        for place, name in self._changing:
            self._values[place] = values[name]
        self._device.write(self._arguments, self._values)

    def run(self, first: int, last: int) -> None:
        """Run the calls from `first` up to `last`, without that."""
        self._device.run(self._table + _ROW_BYTES * first, last - first)
