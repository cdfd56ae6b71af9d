"""A bundle's steps on an emulated ARM64 processor, op by op, each beside the reference.

Every op gets what the processor itself made before it, so an error is told of the op that made it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from cpu import emulated
from cpu.codegen.piped import Piped
from cpu.codegen.tables import isa_for
from cpu.lowering import FEW_ROWS, Lowering
from cpu.values import PRIVATE_ROWS
from edge.bundle import Bundle
from edge.check import Check, compare
from edge.graph import Linear, Op, Rope, Take
from edge.kvcache import KVCache
from edge.reference import FUNCTIONS, Step, WeightCache
from edge.target import Target

# Positions that the cache holds before a step, and rows of the steps: decode has other kernels.
PAST, STEPS = 5, ((1, PRIVATE_ROWS), (9, FEW_ROWS))

# Float sums in another order; quantized products have activations of two 8-bit terms.
_FLOAT_MOST, _QUANTIZED_MOST = 1e-5, 3e-4


def op_count(bundle: Bundle) -> int:
    """How many checks `check` makes, at most: norms fused with rounding are in their readers'."""
    return len(STEPS) * sum(not isinstance(op, Take) for op in bundle.graph.ops())


def check(bundle: Bundle, target: Target) -> Iterator[Check]:
    """Run a decode step and a short prefill; yields what each op's kernels made of it.

    Raises MissingDependency where nothing can be emulated.
    """
    formats = {str(record.form): record.form for record in bundle.manifest.tensors.values()}
    isa = isa_for(target)
    with emulated.start(isa, formats.values()) as device:
        memory = emulated.PipedMemory(device, bundle.weights_path)
        for rows, most in STEPS:
            yield from _Run(bundle, device, memory, rows, most, isa.lookup_bits).run()


class _Run:
    """One step of some rows."""

    def __init__(
        self,
        bundle: Bundle,
        device: Piped,
        memory: emulated.PipedMemory,
        rows: int,
        most: int,
        lookup_bits: Collection[int],
    ) -> None:
        self.bundle, self.device, self.rows = bundle, device, rows
        self.lowering = Lowering(
            bundle, memory, 1, most, "f16", matrix_unit=False, lookup_bits=lookup_bits
        )
        self.lowered = self.lowering.run()
        self.weights = WeightCache(bundle, budget_bytes=0)
        rng = np.random.default_rng(rows)
        cache = KVCache(bundle.graph.caches, PAST + rows, "f16")
        for index, layer in enumerate(bundle.graph.caches):
            shape = 2, layer.kv_heads, PAST, layer.head_dim
            cache.append(index, *rng.normal(size=shape).astype(np.float32))
        cache.advance(PAST)
        tokens = rng.integers(0, bundle.graph.vocabulary, rows).astype(np.int32)
        self.step = Step(tokens, rows, rows, cache, {})
        device.write(self.lowering.tokens_address, tokens)
        self.fill()

    def fill(self) -> None:
        """Set the arguments that change from step to step."""
        cache = self.step.cache
        values = {"rows": self.rows, "logit_rows": self.rows, "skipped_rows": 0}
        values |= {"position": cache.length, "capacity": cache.capacity}
        for index, arrays in enumerate(zip(cache.keys, cache.values, strict=True)):
            for kind, array in zip(("keys", "values"), arrays, strict=True):
                values[f"{kind}/{index}"] = self.put(array)
        for op in self.bundle.graph.ops():
            if isinstance(op, Rope):
                frequencies = self.bundle.tensor(op.frequencies).parts["values"]
                turns = np.arange(cache.capacity, dtype=np.float32)[:, None] * frequencies
                for name, function in (("cos", np.cos), ("sin", np.sin)):
                    angles = (function(turns) * np.float32(op.scale)).astype(np.float32)
                    values.setdefault(f"{name}/{op.frequencies}/{op.scale}", self.put(angles))
        for dynamic, places in self.lowered.dynamic.items():
            for place in places:
                self.lowered.arguments[place] = dynamic.of(values[dynamic.name])

    def put(self, array: NDArray[np.generic]) -> int:
        """A copy with room behind it, so that whole vectors may be read."""
        address = self.device.allocate(array.nbytes + 256)
        self.device.write(address, array)
        return address

    def run(self) -> Iterator[Check]:
        first = 0
        for op, end in zip(self.bundle.graph.ops(), self.lowered.ends, strict=True):
            if isinstance(op, Take):
                continue
            held = [name for name in op.inputs() if not self.fused(name)]
            self.step.values.update({name: self.value(name) for name in held})
            for call in self.lowered.calls[first:end]:
                slots = slice(call.first, call.first + len(call.kernel.slots))
                self.device.call(call.kernel.name, self.lowered.arguments[slots])
            first = end
            if self.fused(op.out):
                self.step.values[op.out] = FUNCTIONS[type(op)](op, self.step, self.weights)
            else:
                yield self.compared(op, self.lowered.calls[end - 1].kernel.name)

    def fused(self, name: str) -> bool:
        """Whether a value is held as quantized rows alone: its readers' products tell of it."""
        place = self.lowering.places[name]
        return any(place is other for other in self.lowering.converted.values())

    def compared(self, op: Op, kernel: str) -> Check:
        want = FUNCTIONS[type(op)](op, self.step, self.weights)
        quantized = isinstance(op, Linear) and self.bundle.tensor(op.weight).form.quantized
        subject = op.weights()[0] if op.weights() else op.out
        most = _QUANTIZED_MOST if quantized else _FLOAT_MOST
        return compare(kernel, subject, self.value(op.out), want, most)

    def value(self, name: str) -> NDArray[np.float32]:
        """What the processor holds, [rows, width]."""
        place = self.lowering.places[name]
        address = place.address if isinstance(place.address, int) else place.address.base
        held = self.device.read(address, np.float32, (self.rows, place.stride // 4))
        return held[:, : place.width]
