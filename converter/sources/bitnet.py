"""BitNet's packed checkpoints: four ternary weights to a byte, one scale for a layer.

A layer is weight uint8 [out / 4, in], where byte r holds rows r, r + out / 4, r + out / 2 and
r + 3 * out / 4 from the lowest bits on, each value plus 1; and weight_scale [1], which the result
is multiplied by (Transformers' AutoBitLinear).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from converter.sources.huggingface import Checkpoint
from converter.sources.packed import Integers, Linear, expect_matrix, expect_shape
from edge.planes import Codes

_PER_BYTE = 4


@dataclass(frozen=True)
class PackedBitnet:
    """The packing, which has no parameters."""

    kind: str = "BitNet"

    def stems(self, checkpoint: Checkpoint) -> Iterable[str]:
        return [
            name.removesuffix(".weight")
            for name in checkpoint.tensor_names
            if name.endswith(".weight") and checkpoint.dtype(name) == "U8"
        ]

    def parts(self) -> tuple[str, ...]:
        return ("weight", "weight_scale")

    def describe(self, checkpoint: Checkpoint, stem: str) -> Linear:
        rows, width = expect_matrix(checkpoint, f"{stem}.weight", "U8")
        expect_shape(checkpoint, f"{stem}.weight_scale", (1,), "")
        return Linear((rows * _PER_BYTE, width), 2, 0, ternary=True)

    def read(
        self, checkpoint: Checkpoint, stem: str, linear: Linear, first: int, last: int
    ) -> Integers:
        part, row = np.divmod(np.arange(first, last), linear.shape[0] // _PER_BYTE)
        packed = checkpoint.raw(f"{stem}.weight")[row]
        shifts = (2 * part[:, None]).astype(np.uint8)
        codes: Codes = ((packed >> shifts) & 3).astype(np.uint8)
        scale = checkpoint.rows(f"{stem}.weight_scale", 0, 1)
        scales = np.broadcast_to(scale[:, None], (last - first, 1))
        return Integers(codes, scales, np.ones(scales.shape, np.uint8))
