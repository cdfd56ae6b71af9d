from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.quantize import gptq, loops
from converter.quantize.gptq import GPTQ_ALONE, Curvature, Effort
from converter.quantize.grid import Grid, fit_threshold, search_grid
from converter.quantize.rtn import fit_tensor_scale, quantize_rows
from edge.errors import BadWeights, MissingDependency
from edge.formats import Format
from edge.planes import dequantize
from tests.converter.quantize.layers import (
    Floats,
    hessian_of,
    make_layer,
    nearest,
    output_error,
)

FORMATS = ["w1g32", "w1g64a", "w2g32", "w2g64a", "w3gca", "w4gc", "w8g128", "ternaryg64"]


def made(name: str, weights: Floats, inputs: Floats, effort: Effort) -> Floats:
    """Weights as GPTQ makes them, by way of what is stored."""
    form = Format.parse(name)
    grid, codes = gptq.quantize(form, weights, Curvature(hessian_of(inputs), effort))
    stored = dequantize(form, grid.quantized(codes))
    assert stored == pytest.approx(grid.decode(codes), rel=1e-6)
    return stored


# What is taken off the output error of round to nearest by GPTQ alone, and by the whole method. The
# least that must hold is 25 % at 4 bits, 35 % at 2 and 15 % at 1; measured on this seed, less some
# 3 %.
CUTS = {
    "w8g64": (0.37, 0.41),
    "w4g64": (0.39, 0.44),
    "w4g32a": (0.36, 0.42),
    "w3g64": (0.39, 0.45),
    "w2g64": (0.36, 0.42),
    "w2g32a": (0.36, 0.42),
    "w1g64": (0.19, 0.38),
    "w1g32a": (0.17, 0.36),
    "ternaryg64": (0.28, 0.42),
}


@pytest.mark.parametrize(("name", "least"), CUTS.items())
def test_output_error_is_cut(name: str, least: tuple[float, float]) -> None:
    weights, inputs = make_layer(96, 256)
    plain = output_error(weights, nearest(Format.parse(name), weights), inputs)
    for effort, cut in zip((GPTQ_ALONE, Effort()), least, strict=True):
        error = output_error(weights, made(name, weights, inputs, effort), inputs)
        assert error < (1 - cut) * plain


@pytest.mark.parametrize("name", FORMATS)
@given(st.integers(1, 9), st.integers(1, 150), st.integers(0, 2**32 - 1))
@settings(max_examples=4, deadline=None)
def test_loops_do_what_their_twins_do(name: str, rows: int, width: int, seed: int) -> None:
    weights, inputs = make_layer(rows, width, seed)
    curvature = Curvature(hessian_of(inputs), Effort(block=32, rounds=2))
    form = Format.parse(name)
    results = [
        gptq.quantize(form, weights, curvature, loops=each)
        for each in (loops.compiled(), loops.PLAIN)
    ]
    errors = [gptq.relative_error(grid, codes, weights, curvature) for grid, codes in results]
    # A tie may fall either way where sums are taken in another order, and moves what follows.
    assert errors[0] == pytest.approx(errors[1], rel=0.05, abs=1e-5)
    assert (results[0][1] != results[1][1]).mean() < 0.05


def test_rounds_never_make_it_worse() -> None:
    weights, inputs = make_layer(32, 128, 3)
    errors = []
    for rounds in range(4):
        curvature = Curvature(hessian_of(inputs), Effort(rounds=rounds))
        grid, codes = gptq.quantize(Format.parse("w2g32"), weights, curvature)
        errors.append(gptq.relative_error(grid, codes, weights, curvature))
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.97 * errors[0]


def test_energy_order_helps_where_inputs_differ() -> None:
    weights, inputs = make_layer(64, 256, 1)
    inputs = inputs * np.geomspace(0.05, 10, 256, dtype=np.float32)
    errors = [
        output_error(
            weights, made("w3g64", weights, inputs, Effort(rounds=0, act_order=on)), inputs
        )
        for on in (True, False)
    ]
    assert errors[0] < 0.8 * errors[1]


def test_weights_on_the_grid_stay() -> None:
    form = Format.parse("w3g32")
    random = np.random.default_rng(0)
    grid = Grid(form, np.full((5, 3), 0.25, np.float32), np.full((5, 3), 4, np.float32))
    codes = random.integers(0, 8, (5, 80)).astype(np.float32)
    _, inputs = make_layer(1, 80)
    _, found = gptq.quantize(
        form, grid.decode(codes), Curvature(hessian_of(inputs), Effort(rounds=0)), grid
    )
    assert (found == codes).all()


def test_one_ternary_scale_keeps_its_grid() -> None:
    form = Format.parse("ternary")
    weights, inputs = make_layer(64, 128)
    grid = Grid(form, np.full((64, 1), 1.2, np.float32), np.ones((64, 1), np.float32))
    curvature = Curvature(hessian_of(inputs), Effort())
    found, codes = gptq.quantize(form, weights, curvature, grid)
    assert found.quantized(codes).scales.shape == (1, 1)
    plain = output_error(weights, nearest(form, weights), inputs)
    assert output_error(weights, found.decode(codes), inputs) < 0.6 * plain


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    weights, inputs = make_layer(8, 64)
    inputs[:, 10:20] = 0
    assert np.isfinite(made("w2g32", weights, inputs, Effort())).all()
    assert np.isfinite(made("w2g32", weights, np.zeros_like(inputs), Effort())).all()
    assert not made("w4g32a", np.zeros_like(weights), inputs, Effort()).any()


def test_inputs_that_overflow_are_refused() -> None:
    with pytest.raises(BadWeights, match="--quality fast"):
        Curvature(np.full((4, 4), np.inf), Effort())


def test_numba_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    loops.compiled.cache_clear()
    with pytest.raises(MissingDependency, match="numba"):
        loops.compiled()


# What the search takes off the weighted error; normal weights, measured less a twentieth.
SEARCH_CUTS = {
    "w4g64": 0.059,
    "w3g32": 0.061,
    "w2g64": 0.12,
    "w2g32a": 0.18,
    "ternaryg64": 0.02,
    "w2gc": 0.19,
}


@pytest.mark.parametrize(("name", "least"), SEARCH_CUTS.items())
def test_searched_ranges_beat_the_full_range(name: str, least: float) -> None:
    form = Format.parse(name)
    weights, _ = make_layer(64, 256)
    energy = np.geomspace(0.1, 10, 256)
    grid = search_grid(form, weights, energy)

    def error(found: Floats) -> float:
        return float(np.sqrt(((found - weights) ** 2 * energy).sum()))

    searched = error(grid.decode(grid.nearest(weights)))
    assert searched < (1 - least) * error(nearest(form, weights))


def test_thresholds_are_the_best_of_all() -> None:
    """No threshold with the scale that is best for it errs less than the one found."""
    form = Format.parse("ternaryg32")
    weights, _ = make_layer(7, 80, 2)
    energy = np.geomspace(0.1, 10, 80)
    grid = search_grid(form, weights, energy)
    found = (grid.decode(grid.nearest(weights)) - weights) ** 2 * energy
    for first, index in ((0, 0), (32, 1), (64, 2)):
        part, h = weights[:, first : first + 32], energy[first : first + 32]
        for row in range(7):
            errors = []
            for threshold in np.abs(part[row]):
                kept = np.abs(part[row]) >= threshold
                scale = (h * np.abs(part[row]))[kept].sum() / h[kept].sum()
                made = np.where(kept, np.sign(part[row]) * scale, 0)
                errors.append((h * (made - part[row]) ** 2).sum())
            error = found[row, first : first + 32].sum()
            assert error <= min(errors) * (1 + 1e-3), (index, row)


@pytest.mark.parametrize("name", ["w1g32", "w1g32a"])
def test_two_values_are_the_best_of_all(name: str) -> None:
    """No scale errs less, nor another zero with the scale that is best for its codes."""
    form = Format.parse(name)
    weights, _ = make_layer(7, 80, 2)
    energy = np.geomspace(0.1, 10, 80).astype(np.float32)
    grid = search_grid(form, weights + np.float32(0.3), energy)

    def errors(tried: Grid) -> Floats:
        made = tried.decode(tried.nearest(weights + np.float32(0.3)))
        squares = (made - weights - np.float32(0.3)) ** 2 * energy
        return np.add.reduceat(squares, [0, 32, 64], axis=1)

    least = errors(grid)
    shifts = np.linspace(-0.5, 0.5, 21) if form.asymmetric else np.zeros(1)
    for share in np.linspace(0.7, 1.4, 29):
        for shift in shifts.astype(np.float32):
            tried = Grid(form, grid.scales * np.float32(share), grid.zeros + shift)
            assert (least <= errors(tried) * (1 + 1e-3)).all(), (share, shift)


def test_two_values_of_one_sign_are_near() -> None:
    """A group that is all alike is kept, and one far from 0 is not off by more than its spread."""
    form = Format.parse("w1g32a")
    for value in (0.5, -0.5):
        grid = search_grid(form, np.full((2, 32), value, np.float32), np.ones(32))
        assert (grid.decode(grid.nearest(np.full((2, 32), value, np.float32))) == value).all()


def test_one_threshold_for_a_tensor_beats_half_the_mean() -> None:
    """By 4 % of the squared error, on weights of which some are far out."""
    weights, _ = make_layer(64, 256)
    weights *= np.abs(weights)
    form = Format.parse("ternary")
    error = []
    for scale in (fit_tensor_scale(lambda: [weights]), fit_threshold([weights[:32], weights[32:]])):
        made = dequantize(form, quantize_rows(form, weights, scale))
        error.append(float(((made - weights) ** 2).sum()))
    assert error[1] < 0.96 * error[0], error


def test_ternary_weights_keep_their_scale() -> None:
    codes = np.random.default_rng(0).integers(-1, 2, (16, 96)).astype(np.float32)
    scale = np.float32(0.0625)
    assert fit_threshold([codes * scale]) == scale
    grid = search_grid(Format.parse("ternaryg32"), codes * scale, np.ones(96))
    assert (grid.scales == scale).all()
