"""Checkpoints of packed integers for tests, written one number at a time.

Encoders follow what AutoGPTQ, AutoAWQ, compressed-tensors and Transformers' BitNet document, in
plain loops over Python's integers, so that they have nothing in common with the readers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import make_checkpoint

WIDE = {"hidden_size": 192, "intermediate_size": 256, "head_dim": 48, "vocab_size": 64}


@dataclass(frozen=True)
class Layer:
    """A linear layer: weight[n, k] = scales[n, group_of[k]] * (codes[n, k] - zeros[n, ...])."""

    codes: NDArray[np.int64]
    scales: NDArray[Any]
    zeros: NDArray[np.int64]
    group_of: NDArray[np.int64]

    def weights(self) -> NDArray[np.float32]:
        steps = (self.codes - self.zeros[:, self.group_of]).astype(np.float32)
        return self.scales.astype(np.float32)[:, self.group_of] * steps


def draw_layer(
    rng: np.random.Generator,
    shape: tuple[int, int],
    bits: int,
    group: int,
    *,
    symmetric: bool = False,
    shuffled: bool = False,
) -> Layer:
    """Random integers with scales that float16 holds."""
    out, width = shape
    groups = -(-width // group)
    zeros = np.full((out, groups), 1 << (bits - 1))
    if not symmetric:
        zeros = rng.integers(0, 1 << bits, (out, groups))
    order = np.arange(width) // group
    return Layer(
        codes=rng.integers(0, 1 << bits, shape),
        scales=rng.uniform(0.001, 0.02, (out, groups)).astype(np.float16),
        zeros=zeros,
        group_of=rng.permutation(order) if shuffled else order,
    )


def pack_bits(numbers: list[int], bits: int) -> list[int]:
    """Numbers as 32-bit words, lowest bits first, as signed integers."""
    whole = 0
    for place, number in enumerate(numbers):
        whole |= number << (place * bits)
    words = [(whole >> (32 * i)) & 0xFFFFFFFF for i in range(-(-len(numbers) * bits // 32))]
    return [word - (1 << 32) if word >= 1 << 31 else word for word in words]


def pack_columns(numbers: NDArray[np.int64], bits: int) -> NDArray[np.int32]:
    """Each column packed from top to bottom: [rows, columns] -> [words, columns]."""
    return np.array([pack_bits(column.tolist(), bits) for column in numbers.T], np.int32).T


def pack_rows(numbers: NDArray[np.int64], bits: int) -> NDArray[np.int32]:
    """Each row packed from left to right."""
    return np.array([pack_bits(row.tolist(), bits) for row in numbers], np.int32)


def gptq_tensors(layer: Layer, bits: int, version: int = 1) -> dict[str, NDArray[Any]]:
    stored = (layer.zeros.T - (1 if version == 1 else 0)) % (1 << bits)
    return {
        "qweight": pack_columns(layer.codes.T, bits),
        "qzeros": pack_rows(stored, bits),
        "scales": layer.scales.T,
        "g_idx": layer.group_of.astype(np.int32),
    }


def awq_tensors(layer: Layer) -> dict[str, NDArray[Any]]:
    def pack(numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        shuffled = numbers.reshape(len(numbers), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return pack_rows(shuffled.reshape(len(numbers), -1), 4)

    return {
        "qweight": pack(layer.codes.T),
        "qzeros": pack(layer.zeros.T),
        "scales": layer.scales.T,
    }


def compressed_tensors(
    layer: Layer, bits: int, *, symmetric: bool, zeros_packed: bool = True
) -> dict[str, NDArray[Any]]:
    made: dict[str, NDArray[Any]] = {
        "weight_packed": pack_rows(layer.codes, bits),
        "weight_scale": layer.scales,
        "weight_shape": np.array(layer.codes.shape, np.int64),
    }
    if not symmetric and zeros_packed:
        made["weight_zero_point"] = pack_columns(layer.zeros, bits)
    elif not symmetric:
        made["weight_zero_point"] = (layer.zeros - (1 << (bits - 1))).astype(np.int8)
    if (np.diff(layer.group_of) < 0).any():
        made["weight_g_idx"] = layer.group_of.astype(np.int32)
    return made


def bitnet_tensors(layer: Layer) -> dict[str, NDArray[Any]]:
    quarter = len(layer.codes) // 4
    packed = np.zeros((quarter, layer.codes.shape[1]), np.uint8)
    for row, values in enumerate(layer.codes.tolist()):
        for column, value in enumerate(values):
            packed[row % quarter, column] |= value << (2 * (row // quarter))
    return {"weight": packed, "weight_scale": layer.scales[:1, 0].astype(np.float32)}


def pack_checkpoint(
    folder: Path, section: dict[str, Any], pack: Any, draw: Any, **changes: Any
) -> dict[str, Layer]:
    """Replace every linear layer inside of a random checkpoint; returns what was written."""
    from safetensors.numpy import load_file, save_file

    make_checkpoint(folder, **WIDE | changes)
    rng = np.random.default_rng(0)
    layers: dict[str, Layer] = {}
    tensors: dict[str, NDArray[Any]] = {}
    for name, values in load_file(folder / "model.safetensors").items():
        if "_proj.weight" not in name:
            tensors[name] = values.astype(np.float16)
            continue
        layers[name] = draw(rng, values.shape)
        for part, array in pack(layers[name]).items():
            stem = name.removesuffix(".weight")
            tensors[f"{stem}.{part}"] = np.ascontiguousarray(array)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return layers
