"""The two inner loops of calibrated quantization, compiled by Numba, each with its NumPy twin.

Both go along the columns of a block of rows, where every column's choice depends on those before.
The twins say what the loops compute; tests hold the loops to them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import MissingDependency

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Loops:
    """Loops to run; all arrays are float32, C order, and changed in place where so said.

    `compensate(rows, upper, scales, zeros, top, codes, errors)`: GPTQ within a block. `rows`
    [rows, width] change, `upper` [width, width], `scales` and `zeros` [rows, width], `codes` and
    `errors` [rows, width] are written; an error is what is still to be taken from later blocks.

    `descend(decoded, codes, gradient, hessian, scales, zeros, top)`: one sweep of coordinate
    descent. All [rows, width] but `hessian`; `decoded`, `codes` and `gradient` change. Returns how
    many codes changed.
    """

    compensate: Callable[..., None]
    descend: Callable[..., int]


def compensate_plain(
    rows: Floats,
    upper: Floats,
    scales: Floats,
    zeros: Floats,
    top: np.float32,
    codes: Floats,
    errors: Floats,
) -> None:
    """Twin of `Loops.compensate`: all rows at once, column by column."""
    for i in range(rows.shape[1]):
        codes[:, i] = _nearest(rows[:, i], scales[:, i], zeros[:, i], top)
        decoded = (codes[:, i] - zeros[:, i]) * scales[:, i]
        errors[:, i] = (rows[:, i] - decoded) / upper[i, i]
        rows[:, i + 1 :] -= errors[:, i, None] * upper[i, i + 1 :]


def descend_plain(
    decoded: Floats,
    codes: Floats,
    gradient: Floats,
    hessian: Floats,
    scales: Floats,
    zeros: Floats,
    top: np.float32,
) -> int:
    """Twin of `Loops.descend`: all rows at once, column by column."""
    changed = 0
    for i in range(codes.shape[1]):
        wanted = decoded[:, i] - gradient[:, i] / hessian[i, i]
        best = _nearest(wanted, scales[:, i], zeros[:, i], top)
        change = (best - codes[:, i]) * scales[:, i]
        changed += int(np.count_nonzero(change))
        codes[:, i] = np.where(change == 0, codes[:, i], best)
        decoded[:, i] += change
        gradient += change[:, None] * hessian[i]
    return changed


def _nearest(values: Floats, scales: Floats, zeros: Floats, top: np.float32) -> Floats:
    safe = np.where(scales == 0, np.float32(np.inf), scales)
    codes: Floats = np.clip(np.rint(values / safe + zeros), np.float32(0), top)
    return codes


PLAIN = Loops(compensate_plain, descend_plain)


@functools.cache
def compiled() -> Loops:
    """The loops as machine code; compiled once, then kept on disk. Raises MissingDependency."""
    try:
        from numba import njit
    except ImportError as error:
        raise MissingDependency(
            "calibrated quantization needs numba", 'pip install "lutra[convert]"'
        ) from error
    make: Callable[[Callable[..., Any]], Callable[..., Any]] = njit(cache=True, nogil=True)
    return Loops(make(_compensate), make(_descend))


def _compensate(
    rows: Floats,
    upper: Floats,
    scales: Floats,
    zeros: Floats,
    top: np.float32,
    codes: Floats,
    errors: Floats,
) -> None:
    count, width = rows.shape
    for r in range(count):
        for i in range(width):
            scale, zero = scales[r, i], zeros[r, i]
            step = rows[r, i] / scale if scale != 0 else np.float32(0)
            code = min(max(np.rint(step + zero), np.float32(0)), top)
            error = (rows[r, i] - (code - zero) * scale) / upper[i, i]
            codes[r, i] = code
            errors[r, i] = error
            for j in range(i + 1, width):
                rows[r, j] -= error * upper[i, j]


def _descend(
    decoded: Floats,
    codes: Floats,
    gradient: Floats,
    hessian: Floats,
    scales: Floats,
    zeros: Floats,
    top: np.float32,
) -> int:
    count, width = codes.shape
    changed = 0
    for r in range(count):
        for i in range(width):
            scale = scales[r, i]
            if scale == 0:
                continue
            wanted = decoded[r, i] - gradient[r, i] / hessian[i, i]
            code = min(max(np.rint(wanted / scale + zeros[r, i]), np.float32(0)), top)
            if code == codes[r, i]:
                continue
            change = (code - codes[r, i]) * scale
            codes[r, i] = code
            decoded[r, i] += change
            changed += 1
            for j in range(width):
                gradient[r, j] += change * hessian[i, j]
    return changed
