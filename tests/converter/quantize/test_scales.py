from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from converter.quantize import gptq, scales
from converter.quantize.gptq import Curvature, Effort
from converter.quantize.rtn import quantize_rows
from edge.errors import BadWeights
from edge.formats import Format
from edge.planes import dequantize
from edge.tensorfile import to_bfloat16, to_float32
from tests.converter.quantize.layers import hessian_of, make_layer

SHORT, SHORTER, LONG, CHANNEL = map(Format.parse, ("w2g64", "w2g64a", "w4g64", "w2gc"))
SHARES = {SHORT: 2.0**-8 + 2.0**-11, SHORTER: 2.0**-6 + 2.0**-11, LONG: 2.0**-11, CHANNEL: 0.0}

some = arrays(np.float32, 50, elements=st.floats(-60000, 60000, width=32))


@given(found=some)
def test_stored_scales_are_near_and_covering_ones_not_smaller(found: np.ndarray) -> None:
    for form, share in SHARES.items():
        # below float16's normal numbers the steps are all alike
        tiny = {CHANNEL: 0, SHORTER: 2.0**-19}.get(form, 2.0**-21)
        near, over = scales.nearest(form, found), scales.covering(form, found).astype(np.float64)
        magnitude = np.abs(found.astype(np.float64))
        assert (np.abs(near - found.astype(np.float64)) <= share * magnitude + tiny).all()
        assert (np.abs(over) >= magnitude).all()
        assert (np.abs(over) - magnitude <= 2.001 * share * magnitude + 2 * tiny).all()
        assert (np.signbit(over) == np.signbit(found)).all()


def test_scales_out_of_range_are_refused() -> None:
    for rounded in (scales.nearest, scales.covering):
        with pytest.raises(BadWeights, match="over the range of w2g64"):
            rounded(SHORT, np.array([1.0, 7e4], np.float32))
        assert rounded(CHANNEL, np.array([7e4], np.float32)) == np.float32(7e4)


@pytest.mark.parametrize("text", ["w1g64", "w2g32", "w2g64", "w2g128", "w2g64a"])
def test_weights_of_two_bits_and_of_one_are_exact_in_bfloat16(text: str) -> None:
    form, (weights, inputs) = Format.parse(text), make_layer(96, 256)
    grid, codes = gptq.quantize(form, weights, Curvature(hessian_of(inputs), Effort()))
    for made in (quantize_rows(form, weights), grid.quantized(codes)):
        values = dequantize(form, made)
        assert np.array_equal(to_float32(to_bfloat16(values), "BF16"), values)
