"""Weight formats and their text form: `w4g64`, `w4g64a`, `w8gc`, `ternary`, `f16`, `f32`.

A quantized weight is `(code - zero) * scale`. Scales, and zeros where the format is asymmetric,
belong to a group of neighbouring weights along a row.

With 1 bit no code can stand for 0 and leave one for each sign: the zero is halfway between the
codes, so that weights are minus or plus half a scale. An asymmetric group of 1 bit has any two
values; its zero is stored in parts of a code, as a whole one would make one of the values 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edge.errors import UnknownFormat

Granularity = Literal["group", "channel", "tensor"]

INTEGER_BITS = (1, 2, 3, 4, 8)
WHOLE_ZERO_BITS = INTEGER_BITS[1:]
GROUPS = (32, 64, 128)
EXAMPLES = "f32, f16, w8gc, w4g64, w4g64a, w3g32, w2g128, w1g64, ternary, ternaryg64"

# Parts of a code in which zeros are counted at 1 bit, from minus half a code on: as uint8, they
# reach from there to almost 1.5 codes.
_PARTS = 128

_INTEGER = re.compile(r"w(\d+)g(\d+|c)(a?)")
_TERNARY = re.compile(r"ternary(?:g(\d+|c))?")


@dataclass(frozen=True)
class Format:
    """How the weights of one tensor are stored.

    `bits` is the width of a code; ternary codes 0, 1, 2 stand for -1, 0, 1 and take 2 bits.
    `granularity` says what shares a scale: `group` weights of a row, a whole row ("channel"), or
    the whole tensor.
    """

    kind: Literal["integer", "ternary", "float"]
    bits: int
    granularity: Granularity = "channel"
    group: int = 0
    asymmetric: bool = False

    @staticmethod
    def parse(text: str) -> Format:
        """Read a format's text form. Raises UnknownFormat."""
        if text in ("f16", "f32"):
            return Format("float", int(text[1:]))
        if match := _TERNARY.fullmatch(text):
            granularity, group = _parse_group(match[1], text)
            return Format("ternary", 2, granularity, group)
        if match := _INTEGER.fullmatch(text):
            if int(match[1]) not in INTEGER_BITS:
                raise _unknown(text, f"{match[1]} bits, need one of {INTEGER_BITS}")
            granularity, group = _parse_group(match[2], text)
            return Format("integer", int(match[1]), granularity, group, match[3] == "a")
        raise _unknown(text, "need w<bits>g<group>[a], ternary, f16 or f32")

    def __str__(self) -> str:
        if self.kind == "float":
            return f"f{self.bits}"
        spread = {"group": f"g{self.group}", "channel": "gc", "tensor": ""}[self.granularity]
        name = "ternary" if self.kind == "ternary" else f"w{self.bits}"
        return name + spread + ("a" if self.asymmetric else "")

    @property
    def quantized(self) -> bool:
        return self.kind != "float"

    @property
    def levels(self) -> int:
        """How many codes there are: 2^bits, or 3."""
        return 3 if self.kind == "ternary" else 1 << self.bits

    @property
    def zero(self) -> float:
        """What stands for 0 in a symmetric format: the middle code, 2^(bits-1); at 1 bit, 1/2.

        An int where it is whole.
        """
        return 0.5 if self.bits == 1 else self.levels // 2

    @property
    def zero_parts(self) -> int:
        """Parts of a code that stored zeros count, from `zero_first` parts below code 0 on."""
        return _PARTS if self.bits == 1 else 1

    @property
    def zero_first(self) -> int:
        """What a zero is stored as that is code 0."""
        return _PARTS // 2 if self.bits == 1 else 0

    def group_size(self, width: int) -> int:
        """Weights along a row of `width` that share a scale; the last group may be shorter."""
        return self.group if self.granularity == "group" else width

    def group_count(self, width: int) -> int:
        """Groups in a row of `width`."""
        return -(-width // self.group_size(width))

    @property
    def error_bound(self) -> float:
        """Largest error of round to nearest, as a share of the group's largest magnitude.

        Symmetric: codes reach from -2^(b-1) to 2^(b-1)-1 steps and the largest magnitude takes the
        long side, so a weight of the other sign may be clipped by up to one step. Asymmetric: half
        a step of a range that is at most twice the largest magnitude, and half a step more because
        the zero is a whole code. Ternary: a weight may be rounded to 0 or to the mean magnitude.
        1 bit: of two means of some weights, a weight is rounded to the closer one.
        """
        if self.kind == "float":
            return 2.0**-11 if self.bits == 16 else 0.0
        if self.kind == "ternary" or self.bits == 1:
            return 2.0 if self.asymmetric else 1.0
        return 2.0 / (self.levels - 1) if self.asymmetric else 1.0 / self.zero


def _parse_group(text: str | None, whole: str) -> tuple[Granularity, int]:
    if text is None:
        return "tensor", 0
    if text == "c":
        return "channel", 0
    if int(text) not in GROUPS:
        raise _unknown(whole, f"a group of {text}, need one of {GROUPS} or c (a whole channel)")
    return "group", int(text)


def _unknown(text: str, detail: str) -> UnknownFormat:
    return UnknownFormat(f"weight format {text!r}: {detail}", f"use one such as {EXAMPLES}")


F32 = Format("float", 32)
F16 = Format("float", 16)
