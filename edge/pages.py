"""Large arrays of zeros as pages of their own: what is never written to takes no memory, what is
no longer used goes back to the system at once.

NumPy's come from the heap, where what is freed leaves holes, and from 4 MB on they are in pages of
2 MB: one row of logits, of the 128 that there is room for, took 2.3 MB in place of 0.6.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

# Smaller arrays would leave much of their last page unused.
_LEAST_BYTES = 1 << 15


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """As np.zeros."""
    byte_count = math.prod(shape) * np.dtype(dtype).itemsize
    if byte_count < _LEAST_BYTES:
        return np.zeros(shape, dtype)
    pages = mmap.mmap(-1, byte_count, access=mmap.ACCESS_COPY)
    return np.frombuffer(pages, dtype).reshape(shape)
