"""What checking a kernel, with a bundle's own weights, against its plain twin found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Check:
    """One use of a kernel.

    `kernel` is what ran, `subject` the tensor that it read, or the value that it made where it
    reads none. `error` is relative, by norms; `detail` says what was wrong, and is empty where
    nothing was.
    """

    kernel: str
    subject: str
    error: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        return not self.detail


def compare(
    kernel: str, subject: str, made: NDArray[np.float32], want: NDArray[np.float32], most: float
) -> Check:
    """Whether numbers are those of the twin, up to a relative error of `most`."""
    error = relative_error(made, want)
    if error <= most:
        return Check(kernel, subject, error)
    return Check(kernel, subject, error, f"relative error {error:.1e}, need {most:.0e}")


def relative_error(made: NDArray[np.float32], want: NDArray[np.float32]) -> float:
    """The norm of the difference over that of `want`; infinite where either is not finite."""
    if not (np.isfinite(made).all() and np.isfinite(want).all()):
        return np.inf
    size = float(np.linalg.norm(want.astype(np.float64)))
    off = float(np.linalg.norm(made.astype(np.float64) - want))
    return off / size if size else off
