"""Functions that no instruction computes, by polynomials on float32 vectors."""

from __future__ import annotations

from cpu.codegen.language import F32, I32, Value

# exp(r) on [-ln2/2, ln2/2], minimax of degree 6: within 2 units in the last place.
_EXP = (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4

# 2^r on [-1/2, 1/2], minimax of degree 5: within 7.5e-8 of it, 2.3e-7 in float32.
_EXP2 = (9.675541e-3, 5.5507133e-2, 2.4022120e-1, 6.9314697e-1, 1.0000001)

# erf, Abramowitz and Stegun 7.1.26: absolute error under 1.5e-7.
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def exp(x: Value) -> Value:
    """e^x; inputs are held within [-87, 88], where float32 neither under- nor overflows."""
    code = x.code
    x = x.maximum(-87.0).minimum(88.0)
    whole = (x * _LOG2_E).round()
    r = whole.fma(code.like(x, -_LN2_HIGH), x)
    r = whole.fma(code.like(x, -_LN2_LOW), r)
    y = code.like(x, 1.9875691500e-4)
    for coefficient in _EXP:
        y = y.fma(r, code.like(x, coefficient))
    y = (y * r).fma(r, r) + 1.0
    power = (whole.to(I32) + 127) << 23
    return y * power.cast(F32.of(x.type.lanes))


def exp2(x: Value) -> Value:
    """2^x of x up to 127; 0 where it is below -126.5."""
    code, x = x.code, x.maximum(-127.0)
    whole = x.round()
    y = code.like(x, 1.3276472e-3)
    for coefficient in _EXP2:
        y = y.fma(x - whole, code.like(x, coefficient))
    power = (whole.to(I32) + 127) << 23
    return y * power.cast(F32.of(x.type.lanes))


def sigmoid(x: Value) -> Value:
    """1 / (1 + e^-x)."""
    one = x.code.like(x, 1.0)
    return one / (exp(-x) + 1.0)


def tanh(x: Value) -> Value:
    """Hyperbolic tangent: 1 - 2 / (e^2x + 1)."""
    two = x.code.like(x, 2.0)
    return x.code.like(x, 1.0) - two / (exp(x * 2.0) + 1.0)


def erf(x: Value) -> Value:
    """The error function."""
    code, size = x.code, x.magnitude()
    t = code.like(x, 1.0) / (size * 0.3275911 + 1.0)
    y = code.like(x, 0.0)
    for coefficient in _ERF:
        y = (y + coefficient) * t
    positive = code.like(x, 1.0) - y * exp(-(size * size))
    return (x < 0.0).select(-positive, positive)
