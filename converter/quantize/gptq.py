"""GPTQ: columns are rounded one after another, and what is left makes up for each one's error.

arXiv 2210.17323, with the columns in order of their inputs' energy (act-order), grids fixed
beforehand, and two steps more that take the error further down: the scales are fitted to the codes
by least squares, and codes are chosen again one at a time for those scales (coordinate descent).
The error is that of the layer's output, tr((Q - W) H (Q - W)^T), H the mean of x x^T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converter.quantize import scales as stored
from converter.quantize.grid import Floats, Grid, search_grid
from converter.quantize.loops import Loops, compiled
from edge.errors import BadWeights
from edge.formats import Format

Matrix = NDArray[np.float64]

BLOCK = 128

Snap = Callable[[Grid], Grid]


@dataclass(frozen=True)
class Effort:
    """How far to go. `damp` is added to H's diagonal, as a share of its mean.

    `act_order` takes the columns of most energy first. `rounds` is how often scales are fitted and
    codes chosen again; `sweeps` how often a round goes over the columns at most.
    """

    damp: float = 0.01
    act_order: bool = True
    block: int = BLOCK
    rounds: int = 6
    sweeps: int = 3


GPTQ_ALONE = Effort(rounds=0)


class Curvature:
    """H of a layer's inputs, damped, and what GPTQ needs of it. Made once for all rows."""

    def __init__(self, hessian: Matrix, effort: Effort) -> None:
        """`hessian` is mean(x x^T), [width, width]. Raises BadWeights where it is not finite."""
        if not np.isfinite(hessian).all():
            raise BadWeights(
                "calibration inputs overflow", "check the checkpoint, or use --quality fast"
            )
        self.effort = effort
        self.damped = damped(hessian, effort.damp)
        energy = np.diag(self.damped)
        width = len(energy)
        self.order = np.argsort(-energy, kind="stable") if effort.act_order else np.arange(width)
        self.upper = _inverse_factor(self.damped[np.ix_(self.order, self.order)])

    @property
    def energy(self) -> Matrix:
        """Mean square of every input, [width]."""
        return np.diag(self.damped)

    def error(self, rows: Floats, target: Floats) -> float:
        """Mean square of the output's difference, summed over rows."""
        difference = (rows - target).astype(np.float64)
        return float(((difference @ self.damped) * difference).sum())


def damped(hessian: Matrix, share: float) -> Matrix:
    """H with a share of its mean diagonal added; inputs that are always 0 count a little too."""
    mean = float(np.diag(hessian).mean()) or 1.0
    return hessian + share * mean * np.eye(len(hessian))


def _inverse_factor(hessian: Matrix) -> Floats:
    """Upper triangular U with U^T U = H^-1."""
    inverse = np.linalg.inv(hessian)
    return np.ascontiguousarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, np.float32)


def quantize(
    form: Format,
    target: Floats,
    curvature: Curvature,
    grid: Grid | None = None,
    loops: Loops | None = None,
    snap: Snap | None = None,
) -> tuple[Grid, Floats]:
    """The grid and codes [rows, width] that come closest to `target` in the layer's output.

    `grid` is searched for where it is not given; a ternary one with one scale must be. `snap` turns
    a grid into the nearest that can be stored, where not all can. Raises MissingDependency without
    Numba, unless other `loops` are given.
    """
    loops, snap = loops or compiled(), snap or (lambda any_grid: any_grid)
    grid = snap(grid or search_grid(form, target, curvature.energy))
    codes = compensate(grid, target, curvature, loops)
    for _ in range(curvature.effort.rounds):
        if form.granularity != "tensor":
            grid = snap(fit_scales(grid, codes, target, curvature))
        codes = descend(grid, codes, target, curvature, loops)
    return grid, codes


def compensate(grid: Grid, target: Floats, curvature: Curvature, loops: Loops) -> Floats:
    """GPTQ: codes [rows, width] of a fixed grid."""
    order, upper, step = curvature.order, curvature.upper, curvature.effort.block
    scales, zeros = (_taken(values, order) for values in grid.columns(target.shape[1]))
    rows = _taken(target, order)
    made = np.empty_like(rows)
    for first in range(0, len(order), step):
        block = slice(first, first + step)
        part, codes = np.ascontiguousarray(rows[:, block]), np.empty_like(rows[:, block])
        errors = np.empty_like(part)
        loops.compensate(
            part,
            np.ascontiguousarray(upper[block, block]),
            np.ascontiguousarray(scales[:, block]),
            np.ascontiguousarray(zeros[:, block]),
            np.float32(grid.form.levels - 1),
            codes,
            errors,
        )
        rows[:, first + step :] -= errors @ upper[block, first + step :]
        made[:, block] = codes
    codes = np.empty_like(made)
    codes[:, order] = made
    return codes


def _taken(values: Floats, order: NDArray[np.intp]) -> Floats:
    return np.ascontiguousarray(values[:, order], np.float32)


def fit_scales(grid: Grid, codes: Floats, target: Floats, curvature: Curvature) -> Grid:
    """The scales that make the least output error with these codes: a linear system a row."""
    form, width = grid.form, codes.shape[1]
    hessian = curvature.damped
    _, zeros = grid.columns(width)
    steps = (codes - zeros).astype(np.float64)
    size, groups = form.group_size(width), form.group_count(width)
    starts = np.arange(0, width, size)
    wanted = np.add.reduceat((target @ hessian) * steps, starts, axis=1)  # [rows, groups]
    system = np.empty((len(codes), groups, groups))
    for index, first in enumerate(starts):
        part = slice(first, first + size)
        system[:, index] = np.add.reduceat((steps[:, part] @ hessian[part]) * steps, starts, axis=1)
    diagonal = np.arange(groups)
    mean = system[:, diagonal, diagonal].mean(axis=1, keepdims=True)
    system[:, diagonal, diagonal] += 1e-6 * mean + 1e-30  # groups of nothing but zeros
    scales = np.linalg.solve(system, wanted[:, :, None])[:, :, 0]
    return Grid(form, stored.nearest(form, scales), grid.zeros)


def descend(
    grid: Grid, codes: Floats, target: Floats, curvature: Curvature, loops: Loops
) -> Floats:
    """Choose each code again, given all others, until none changes or the sweeps are over."""
    hessian = np.ascontiguousarray(curvature.damped, np.float32)
    scales, zeros = (np.ascontiguousarray(a) for a in grid.columns(codes.shape[1]))
    codes = codes.copy()
    decoded = grid.decode(codes)
    for _ in range(curvature.effort.sweeps):
        gradient = (decoded - target) @ hessian
        top = np.float32(grid.form.levels - 1)
        if not loops.descend(decoded, codes, gradient, hessian, scales, zeros, top):
            break
    return codes


def relative_error(grid: Grid, codes: Floats, target: Floats, curvature: Curvature) -> float:
    """Root mean square error of the output over that of the output itself."""
    whole = curvature.error(target, np.zeros_like(target))
    error = curvature.error(grid.decode(codes), target)
    return float(np.sqrt(error / whole)) if whole else 0.0
