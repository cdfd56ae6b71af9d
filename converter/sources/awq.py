"""AWQ checkpoints as AutoAWQ writes them ("gemm").

A layer of K inputs and N outputs is qweight int32 [K, N / 8], qzeros int32 [groups, N / 8] and
scales [groups, N], all of them packed along N in the order of a GPU kernel's registers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.models.config import Config
from converter.sources.huggingface import Checkpoint
from converter.sources.packed import Integers, Linear, expect_matrix, expect_shape, unpack_words
from edge.planes import Codes

BITS = 4
# Which of 8 neighbouring outputs each nibble of a word is, from the lowest on.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

_INERT_WORDS = """
    backend do_fuse exllama_config fuse_max_seq_len modules_to_fuse modules_to_not_convert
    quant_method
"""
_INERT = tuple(_INERT_WORDS.split())


@dataclass(frozen=True)
class Awq:
    """The packing of one checkpoint."""

    group_size: int
    kind: str = "AWQ"

    @staticmethod
    def parse(section: Config) -> Awq:
        """Read a quantization_config. Raises UnsupportedMath naming the key."""
        for key, default in (("bits", BITS), ("w_bit", BITS)):
            if section.peek(key) not in (None, default):
                raise section.unsupported(key, f"need {BITS}")
        key = "q_group_size" if section.peek("q_group_size") else "group_size"
        size = section.peek(key)
        if type(size) is not int or (size != -1 and size < 1):
            raise section.unsupported(key, "need -1 or a number of weights")
        if str(section.peek("version") or "gemm").lower() != "gemm":
            raise section.unsupported("version", "need gemm")
        if section.peek("zero_point") is False:
            raise section.unsupported("zero_point", "need true")
        section.ignore("group_size", "zero_point", *_INERT)
        section.finish()
        return Awq(size)

    def stems(self, checkpoint: Checkpoint) -> Iterable[str]:
        return [n.removesuffix(".qweight") for n in checkpoint.tensor_names if ".qweight" in n]

    def parts(self) -> tuple[str, ...]:
        return ("qweight", "qzeros", "scales")

    def describe(self, checkpoint: Checkpoint, stem: str) -> Linear:
        width, words = expect_matrix(checkpoint, f"{stem}.qweight", "I32")
        group = width if self.group_size == -1 else min(self.group_size, width)
        linear = Linear((words * len(ORDER), width), BITS, group, asymmetric=True)
        expect_shape(checkpoint, f"{stem}.qzeros", (linear.group_count, words), "I32")
        expect_shape(checkpoint, f"{stem}.scales", (linear.group_count, linear.shape[0]), "")
        return linear

    def read(
        self, checkpoint: Checkpoint, stem: str, linear: Linear, first: int, last: int
    ) -> Integers:
        start, end = first // len(ORDER), -(-last // len(ORDER))
        inside = slice(first - start * len(ORDER), last - start * len(ORDER))
        codes, zeros = (
            _in_order(checkpoint.raw(f"{stem}.{part}")[:, start:end])[:, inside]
            for part in ("qweight", "qzeros")
        )
        scales = checkpoint.rows(f"{stem}.scales", 0, linear.group_count)[:, first:last]
        return Integers(codes.T, scales.T, zeros.T)


def _in_order(words: NDArray[Any]) -> Codes:
    """Words [rows, words] -> nibbles in the order of the outputs, [rows, words * 8]."""
    nibbles = unpack_words(words, BITS).reshape(len(words), -1, len(ORDER))
    ordered = nibbles[:, :, np.argsort(ORDER)]
    return ordered.reshape(len(words), -1)
