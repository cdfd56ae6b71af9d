"""Scales rounded to what is stored: float16 for groups, float32 for channels and tensors.

The scale of a symmetric group of 1 or 2 bits has 8 significant bits, of the 11 of float16: its
weights, which are minus or plus half the scale, or -2, -1, 0 or 1 times it, are then exact in
bfloat16, in which a matrix unit multiplies. With a zero of its own, 2 bits reach from -3 to 3 times
the scale, which has 6. A scale that is 0.8 % off at most (where it must cover, 3 %) is nothing next
to what 2 bits lose.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import BadWeights
from edge.formats import Format


def nearest(form: Format, scales: NDArray[np.floating]) -> NDArray[np.float32]:
    """The closest scales that can be stored. Raises BadWeights where they are out of range."""
    if form.granularity != "group":
        return _finite(form, scales, scales.astype(np.float32))
    with np.errstate(over="ignore"):
        narrow = scales.astype(np.float16)
    past = _past(form)
    narrow = _cut(narrow, past, (past + 1) // 2)
    return _finite(form, scales, narrow).astype(np.float32)


def covering(form: Format, scales: NDArray[np.float32]) -> NDArray[Any]:
    """The closest scales, in the type stored, that are not smaller; raises as `nearest`.

    So the codes always reach the group's largest weight. Rounding to nearest would clip it where
    float16 is coarse: at 8 bits, weights under 0.001 have subnormal scales.
    """
    if form.granularity != "group":
        return _finite(form, scales, scales)
    with np.errstate(over="ignore"):
        narrow = scales.astype(np.float16)
        short = np.abs(narrow) < np.abs(scales)
        narrow[short] = np.nextafter(narrow[short], np.copysign(np.float16(np.inf), narrow[short]))
    past = _past(form)
    return _finite(form, scales, _cut(narrow, past, past))


def _past(form: Format) -> int:
    """The last bits of a float16, past the significant ones of a scale."""
    if form.bits > 2 or form.kind == "ternary":
        return 0
    if not form.asymmetric:
        return 0b111
    return 0b11111 if form.bits == 2 else 0


def _cut(scales: NDArray[np.float16], past: int, added: int) -> NDArray[np.float16]:
    """Without its last bits: of the magnitude, as whole numbers, with something added before."""
    bits = scales.view(np.uint16) + np.uint16(added)
    made: NDArray[np.float16] = (bits & np.uint16(~past & 0xFFFF)).view(np.float16)
    return made


def _finite(form: Format, scales: NDArray[np.floating], stored: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(stored).all():
        raise BadWeights(
            f"weights reach {np.abs(scales).max() * form.zero:.3g}, over the range of {form}",
            "use a channel format such as w8gc, or f32",
        )
    return stored
