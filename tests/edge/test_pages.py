"""Arrays in pages of their own are NumPy's but for where they lie."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from edge import pages


@pytest.mark.parametrize("shape", [(0,), (3, 5), (70, 1000), (2, 30_000, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.int64])
def test_zeros_may_be_written(shape: tuple[int, ...], dtype: type) -> None:
    array = pages.zeros(shape, dtype)
    assert array.shape == shape
    assert array.dtype == dtype
    assert not array.any()
    array[...] = 7
    assert (array == 7).all()
    assert not pages.zeros(shape, dtype).any()


def test_large_arrays_begin_a_page() -> None:
    assert pages.zeros((1 << 20,), np.uint8).ctypes.data % mmap.PAGESIZE == 0
