"""Checkpoints of compressed-tensors (llm-compressor, vLLM) with packed integer weights.

A layer is weight_packed int32 [out, in * bits / 32], packed along the inputs with codes from 0;
weight_scale [out, groups]; weight_shape [out, in]; where it is asymmetric weight_zero_point, packed
along the outputs or plain; where its groups are out of order weight_g_idx [in].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from converter.models.config import Config
from converter.sources.huggingface import Checkpoint
from converter.sources.packed import (
    WORD_BITS,
    Integers,
    Linear,
    expect_matrix,
    expect_shape,
    unpack_words,
    with_order,
)
from edge.planes import Codes

_PACKED, _SCALE, _SHAPE = "weight_packed", "weight_scale", "weight_shape"
_ZERO, _INDEX = "weight_zero_point", "weight_g_idx"


@dataclass(frozen=True)
class CompressedTensors:
    """The packing of one checkpoint; no `group_size` is a scale for a whole row."""

    bits: int
    group_size: int | None
    symmetric: bool
    kind: str = "compressed-tensors"

    @staticmethod
    def parse(section: Config) -> CompressedTensors:
        """Read a quantization_config. Raises UnsupportedMath naming the key."""
        section.choice("format", ["pack-quantized"])
        section.ignore(
            "quant_method", "quantization_status", "global_compression_ratio", "ignore", "version"
        )
        groups = section.section("config_groups")
        if groups is None or len(groups.values) != 1:
            raise section.unsupported("config_groups", "need one group for all linear layers")
        group = groups.section(next(iter(groups.values)))
        if group is None:
            raise section.unsupported("config_groups", "need one group for all linear layers")
        if group.peek("targets") != ["Linear"]:
            raise group.unsupported("targets", "need all Linear layers")
        group.choice("format", ["pack-quantized"], "pack-quantized")
        weights = group.section("weights")
        if weights is None:
            raise group.unsupported("weights", "need a description of the weights")
        made = _weights(weights)
        for part in (group, groups, section):
            part.finish()
        return made

    def stems(self, checkpoint: Checkpoint) -> Iterable[str]:
        return [n.removesuffix("." + _PACKED) for n in checkpoint.tensor_names if _PACKED in n]

    def parts(self) -> tuple[str, ...]:
        return (_PACKED, _SCALE, _SHAPE, _ZERO, _INDEX)

    def describe(self, checkpoint: Checkpoint, stem: str) -> Linear:
        out, words = expect_matrix(checkpoint, f"{stem}.{_PACKED}", "I32")
        expect_shape(checkpoint, f"{stem}.{_SHAPE}", (2,), "")
        shape = [int(n) for n in checkpoint.raw(f"{stem}.{_SHAPE}")]
        width = shape[1] if words * WORD_BITS - WORD_BITS < shape[1] * self.bits else 0
        expect_shape(checkpoint, f"{stem}.{_PACKED}", (shape[0], -(-width * self.bits // 32)), "")
        linear = Linear((out, width), self.bits, self.group_size or width, not self.symmetric)
        groups = linear.group_count
        expect_shape(checkpoint, f"{stem}.{_SCALE}", (out, groups), "")
        if not self.symmetric and checkpoint.dtype(f"{stem}.{_ZERO}") == "I32":
            packed = -(-out * self.bits // WORD_BITS)
            expect_shape(checkpoint, f"{stem}.{_ZERO}", (packed, groups), "I32")
        elif not self.symmetric:
            expect_shape(checkpoint, f"{stem}.{_ZERO}", (out, groups), "I8")
        return with_order(linear, checkpoint, f"{stem}.{_INDEX}")

    def read(
        self, checkpoint: Checkpoint, stem: str, linear: Linear, first: int, last: int
    ) -> Integers:
        words = checkpoint.raw(f"{stem}.{_PACKED}", first, last)
        scales = checkpoint.rows(f"{stem}.{_SCALE}", first, last)
        zeros = self._zeros(checkpoint, stem, scales.shape, first, last)
        return Integers(unpack_words(words, self.bits)[:, : linear.shape[1]], scales, zeros)

    def _zeros(
        self, checkpoint: Checkpoint, stem: str, shape: tuple[int, ...], first: int, last: int
    ) -> Codes:
        middle = 1 << (self.bits - 1)
        if self.symmetric:
            return np.full(shape, middle, np.uint8)
        if checkpoint.dtype(f"{stem}.{_ZERO}") == "I32":
            packed = checkpoint.raw(f"{stem}.{_ZERO}")
            return unpack_words(packed.T, self.bits)[:, first:last].T
        plain = checkpoint.raw(f"{stem}.{_ZERO}", first, last).astype(np.int16)
        return (plain + middle).astype(np.uint8)


def _weights(weights: Config) -> CompressedTensors:
    bits = weights.integer("num_bits")
    if bits not in (4, 8):
        raise weights.unsupported("num_bits", "need 4 or 8")
    weights.choice("type", ["int"])
    strategy = weights.choice("strategy", ["group", "channel"])
    size = weights.integer("group_size") if strategy == "group" else None
    symmetric = weights.flag("symmetric", True)
    weights.ignore("actorder", "block_structure", "observer", "observer_kwargs", "group_size")
    weights.ignore("scale_dtype", "zp_dtype")
    weights.finish()
    return CompressedTensors(bits, size, symmetric)
