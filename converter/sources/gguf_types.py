"""The tensor types of GGUF files: blocks of weights, and what a bundle can keep of them.

Q4_0, Q5_0, Q8_0, IQ4_NL and the ternary types are an integer times a float16 scale, as the formats
of a bundle are, and are kept exactly. The others have a minimum beside the scale, scales within
scales, or a codebook, which those formats lack: they are decoded by the `gguf` package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.sources.source import NEAREST
from edge.errors import BadWeights, MissingDependency
from edge.formats import F16, F32, Format
from edge.planes import Quantized

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class BlockType:
    """A type: `block` weights take `byte_count` bytes.

    `form` is the format of a bundle for it, None for a type that is not read. Where the form holds
    its integers exactly, `zero` is the code that stands for 0 and `scale_at` the byte of a block at
    which its float16 scale is.
    """

    number: int
    name: str
    block: int
    byte_count: int
    form: Format | None = None
    zero: int = 0
    scale_at: int | None = None

    @property
    def readable(self) -> bool:
        return self.form is not None

    @property
    def exact(self) -> bool:
        return self.scale_at is not None


def _types() -> dict[int, BlockType]:
    ternary = Format.parse("ternaryg128")
    listed = [
        BlockType(0, "F32", 1, 4, F32),
        BlockType(1, "F16", 1, 2, F16),
        BlockType(30, "BF16", 1, 2, F16),
        BlockType(2, "Q4_0", 32, 18, Format.parse("w4g32"), 8, 0),
        BlockType(6, "Q5_0", 32, 22, NEAREST, 128, 0),
        BlockType(8, "Q8_0", 32, 34, NEAREST, 128, 0),
        BlockType(34, "TQ1_0", 256, 54, ternary, 1, 52),
        BlockType(35, "TQ2_0", 256, 66, ternary, 1, 64),
        BlockType(3, "Q4_1", 32, 20, NEAREST),
        BlockType(7, "Q5_1", 32, 24, NEAREST),
        BlockType(10, "Q2_K", 256, 84, NEAREST),
        BlockType(11, "Q3_K", 256, 110, NEAREST),
        BlockType(12, "Q4_K", 256, 144, NEAREST),
        BlockType(13, "Q5_K", 256, 176, NEAREST),
        BlockType(14, "Q6_K", 256, 210, NEAREST),
        BlockType(9, "Q8_1", 32, 40),
        BlockType(15, "Q8_K", 256, 292),
        BlockType(16, "IQ2_XXS", 256, 66, NEAREST),
        BlockType(17, "IQ2_XS", 256, 74, NEAREST),
        BlockType(18, "IQ3_XXS", 256, 98, NEAREST),
        BlockType(19, "IQ1_S", 256, 50, NEAREST),
        BlockType(20, "IQ4_NL", 32, 18, NEAREST, 128, 0),
        BlockType(21, "IQ3_S", 256, 110, NEAREST),
        BlockType(22, "IQ2_S", 256, 82, NEAREST),
        BlockType(23, "IQ4_XS", 256, 136, NEAREST),
        BlockType(24, "I8", 1, 1),
        BlockType(25, "I16", 1, 2),
        BlockType(26, "I32", 1, 4),
        BlockType(27, "I64", 1, 8),
        BlockType(28, "F64", 1, 8),
        BlockType(29, "IQ1_M", 256, 56, NEAREST),
        BlockType(39, "MXFP4", 32, 17, NEAREST),
        BlockType(40, "NVFP4", 64, 36),
    ]
    return {kind.number: kind for kind in listed}


TYPES = _types()


def decode(kind: BlockType, rows: Bytes) -> NDArray[np.float32]:
    """Rows of blocks, uint8 [rows, bytes] -> float32 [rows, width].

    Raises MissingDependency without the gguf package, which plain floats do not need.
    """
    match kind.name:
        case "F32":
            return rows.view(np.float32)
        case "F16":
            return rows.view(np.float16).astype(np.float32)
        case "BF16":
            return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        raise MissingDependency(
            f"weights in {kind.name} need the gguf package", 'pip install "lutra[convert]"'
        ) from error
    try:
        with np.errstate(all="ignore"):  # a damaged scale is found by whoever looks at the weights
            values: NDArray[Any] = dequantize(rows, GGMLQuantizationType[kind.name])
    except (KeyError, NotImplementedError) as error:
        raise MissingDependency(
            f"weights in {kind.name} need a newer gguf package", "pip install --upgrade gguf"
        ) from error
    return values.astype(np.float32, copy=False)


def decode_codes(kind: BlockType, rows: Bytes) -> Quantized:
    """Rows of blocks of an exact type as its own integers and scales, for `kind.form`.

    Integers are what blocks decode to whose scales are 1. Raises BadWeights for a ternary block
    that holds a fourth value.
    """
    assert kind.form is not None
    assert kind.scale_at is not None
    count = len(rows)
    blocks = rows.reshape(count, -1, kind.byte_count)
    scale = slice(kind.scale_at, kind.scale_at + 2)
    scales = np.ascontiguousarray(blocks[:, :, scale]).view(np.float16)[:, :, 0]
    plain = blocks.copy()
    plain[:, :, scale] = np.array([1], np.float16).view(np.uint8)
    steps = decode(kind, plain.reshape(count, -1)).astype(np.int16)
    codes = steps + kind.zero
    if codes.max(initial=0) >= kind.form.levels:
        raise BadWeights(
            f"a {kind.name} block holds {int(codes.max()) - kind.zero}, need -1, 0 or 1",
            "the file is damaged: get another copy",
        )
    repeats = kind.block // kind.form.group
    return Quantized(codes.astype(np.uint8), np.repeat(scales, repeats, axis=1))
