"""A bundle's decode step on Hexagon: the whole step, all layers, in one request.

The weights file is mapped once. The host's KV cache is the master, since another target may have
filled it: the device has a copy, which is brought up to date before a step, and the new row comes
back after it.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cpu.kernels import argmax
from edge.bundle import Bundle
from edge.errors import NpuUnavailable
from edge.formats import Format
from edge.graph import Rope
from edge.kvcache import CacheFormat, KVCache
from edge.target import Target
from npu.hvx import build, inner
from npu.hvx.contracts import families
from npu.hvx.emulator import Emulator
from npu.hvx.fastrpc import Session
from npu.hvx.isa import Hexagon, table_for
from npu.hvx.lowering import Device, Dynamic, Lowering, Step, angles_name
from npu.hvx.phone import PhoneDevice

# Hardware threads with a vector context that are emulated, each with a share of a kernel's work.
THREADS = 4

# Whole vectors of the last row may be read.
_PADDING = 128


def built(isa: Hexagon, formats: Iterable[Format]) -> Path:
    """The emulated device's program with the kernels for these formats, kept in the cache."""
    from cpu.codegen.cache import cache_folder

    objects = [build.start_object(isa), build.runtime_object(isa)]
    forms = list(formats)
    objects += build.kernel_objects(isa, families(forms))
    objects += [build.assembled(isa, text) for text in inner.assemblies(forms)]
    key = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in objects))
    path = cache_folder() / f"{key.hexdigest()}.hexagon"
    if not path.is_file():
        build.program(objects, path)
    return path


def on_phone(bundle: Bundle, target: Target, skels: Path, threads: int | None) -> HvxProgram:
    """The program on this phone's NPU, with the newest skel library of a folder up to the target's.

    Raises NpuUnavailable without an NPU or a library for it, CallRefused where the driver refuses.
    """
    version = table_for(target).version
    session = Session(skels, newest=version)
    if session.version < version:
        session.close()
        raise NpuUnavailable(
            f"target {target}: this phone's NPU is Hexagon v{session.version}",
            f"use --decode npu:hvx-v{session.version}, for which to convert",
        )
    return HvxProgram(bundle, target, PhoneDevice(session), threads or session.contexts)


def emulated(bundle: Bundle, target: Target, threads: int | None = None) -> HvxProgram:
    """The program on an emulated device. Raises MissingDependency without one."""
    formats = {str(record.form): record.form for record in bundle.manifest.tensors.values()}
    device = Emulator(built(table_for(target), formats.values()))
    return HvxProgram(bundle, target, device, threads or THREADS)


class HvxProgram:
    """A program on a Hexagon. See `edge.backend.Program` and `edge.backend.PicksBest`."""

    chunks = (1,)

    def __init__(self, bundle: Bundle, target: Target, device: Device, threads: int) -> None:
        self.target, self.device = target, device
        self._bundle = bundle
        self._threads = threads
        self._weights = device.map_file(bundle.weights_path)
        self._steps: dict[CacheFormat, Calls] = {}
        self._cache = _CacheCopy(device)

    def run(
        self, tokens: NDArray[np.int32], count: int, cache: KVCache, logit_rows: int
    ) -> NDArray[np.float32]:
        """Run one token. See `edge.backend.Program.run`."""
        assert count == 1, count
        calls = self.prepare(tokens, cache)
        self._run(calls, cache, calls.step.logits if logit_rows else calls.step.body)
        shape = logit_rows, self._bundle.graph.vocabulary
        return self.device.read(calls.lowering.logits, np.float32, shape)

    def best(self, tokens: NDArray[np.int32], count: int, cache: KVCache) -> tuple[int, float]:
        """The best next token and its score. See `edge.backend.PicksBest`."""
        assert count == 1, count
        calls = self.prepare(tokens, cache)
        self._run(calls, cache, len(calls.step.calls))
        left = self.device.read(calls.lowering.best, np.uint8, (self._threads, argmax.LINE))
        return argmax.best_of_threads(left)

    def _run(self, calls: Calls, cache: KVCache, last: int) -> None:
        calls.run(0, last)
        self._cache.take_row(cache)

    def prepare(self, tokens: NDArray[np.int32], cache: KVCache) -> Calls:
        """A step's calls, with all that they read in place."""
        cache.reserve(1)
        calls = self._calls(cache.form)
        self._write_angles(calls, cache.length)
        self.device.write(calls.lowering.buffers["tokens"], tokens[:1])
        places = self._cache.update(cache)
        calls.write(places | {"position": cache.length, "capacity": cache.capacity})
        return calls

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


class _CacheCopy:
    """A KV cache's arrays on a device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._rooms: dict[str, tuple[int, int]] = {}
        self._held: tuple[object, ...] = ()
        self._length = 0

    def update(self, cache: KVCache) -> dict[str, int]:
        """Copy what the device has not; returns where keys and values are."""
        held = weakref.ref(cache), cache.capacity, cache.rewinds, cache.form
        first = self._length if held == self._held else 0
        self._held = ()  # an error on the way leaves nothing to rely on
        places = {}
        for name, array in _arrays(cache):
            size, place = self._rooms.get(name, (0, 0))
            if size < array.nbytes:
                place = self._device.allocate(array.nbytes + _PADDING)
                self._rooms[name] = array.nbytes, place
            for head in range(len(array) if first < cache.length else 0):
                at = place + _start(array, head, first)
                self._device.write(at, array[head, first : cache.length])
            places[name] = place
        self._held, self._length = held, cache.length
        return places

    def take_row(self, cache: KVCache) -> None:
        """Copy back the row that a step appended, and count it."""
        for name, array in _arrays(cache):
            row = array[0, 0]
            for head in range(len(array)):
                at = self._rooms[name][1] + _start(array, head, cache.length)
                array[head, cache.length] = self._device.read(at, array.dtype, row.shape)
        cache.advance(1)
        self._length = cache.length


def _arrays(cache: KVCache) -> list[tuple[str, NDArray[np.generic]]]:
    """Keys and values of every layer, as lowering calls them."""
    kinds = ("keys", cache.keys), ("values", cache.values)
    return [(f"{kind}/{index}", a) for kind, arrays in kinds for index, a in enumerate(arrays)]


def _start(array: NDArray[np.generic], head: int, position: int) -> int:
    """Bytes to a head's row of a cache [heads, capacity, row]."""
    return head * array[head].nbytes + position * array[0, 0].nbytes


class Calls:
    """The calls of a step on a device, with their changing arguments."""

    def __init__(self, device: Device, lowering: Lowering) -> None:
        self.lowering = lowering
        self.step: Step = lowering.run()
        slots = [value for call in self.step.calls for value in call.arguments.values()]
        self._changing = [
            (place, value.name) for place, value in enumerate(slots) if isinstance(value, Dynamic)
        ]
        self._values = np.array([0 if isinstance(s, Dynamic) else s for s in slots], np.int64)
        self._prepared = device.prepare(self.step.calls)

    def write(self, values: dict[str, int]) -> None:
        """Give the calls the values of a step, by name."""
        for place, name in self._changing:
            self._values[place] = values[name]
        self._prepared.write(self._values)

    def run(self, first: int, last: int) -> None:
        """Run the calls from `first` up to `last`, without that."""
        self._prepared.run(first, last)
