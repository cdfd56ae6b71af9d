"""A prompt cut into chunks of fixed length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cut:
    """Tokens from `first` on, of which the last `logit_rows` get logits."""

    first: int
    tokens: NDArray[np.int32]
    logit_rows: int


def cut(tokens: NDArray[np.int32], rows: int, logit_rows: int) -> Iterator[Cut]:
    """Chunks of `rows` tokens, the last shorter. The last `logit_rows` of all get logits."""
    for first in range(0, len(tokens), rows):
        ids = tokens[first : first + rows]
        yield Cut(first, ids, max(len(ids) - max(len(tokens) - logit_rows - first, 0), 0))
