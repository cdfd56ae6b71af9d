"""Orthogonal matrices that spread a channel over all others: Hadamard's, with random signs.

QuaRot (arXiv 2404.00456, section 3) and SpinQuant (2405.16406): outliers that sit in one channel
are of the size of all others behind such a rotation, and weights and activations round better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Rotation:
    """x D (H x O) / sqrt(2^k) on every run of `width` elements of the last axis.

    D are signs, H is the Hadamard matrix of the largest power of two in the width, and O a random
    orthogonal matrix of what is left, which is 1 for most models and under 32 for all published.
    """

    signs: Wide  # [width]
    odd: Wide  # [m, m]

    @staticmethod
    def draw(width: int, seed: int) -> Rotation:
        """The rotation of a seed."""
        random = np.random.default_rng([seed, width])
        signs = random.choice([-1.0, 1.0], width)
        count = width // (width & -width)
        odd, _ = np.linalg.qr(random.normal(size=(count, count)))
        return Rotation(signs, odd)

    def apply(self, x: Wide) -> Wide:
        """x [..., n * width] rotated."""
        width, count = len(self.signs), len(self.odd)
        runs = (x.reshape(-1, width) * self.signs).reshape(-1, count, width // count)
        return (self.odd @ transform(runs)).reshape(x.shape)


def transform(x: Wide) -> Wide:
    """The Walsh-Hadamard transform of the last axis, a power of two long; it keeps lengths."""
    width, step = x.shape[-1], 1
    shape, count = x.shape, x.size // max(width, 1)
    while step < width:
        pairs = x.reshape(count, -1, 2, step)
        x = np.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), axis=2)
        step *= 2
    made: Wide = x.reshape(shape) / np.sqrt(width)
    return made
