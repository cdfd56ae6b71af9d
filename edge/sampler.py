"""From logits to the next token.

The order is that of Transformers' generate(): repetition penalty, temperature, top-k, top-p, min-p,
softmax, draw. So settings published with a checkpoint mean here what they mean there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge.errors import BadTokens, UsageError

if TYPE_CHECKING:
    import random

# Tokens that top-p sorts first. Most of the mass of a trained model lies in far fewer, and sorting
# 256 of 150,000 costs a tenth of sorting all; where they do not suffice, 8 times as many are tried.
_FIRST_SORTED = 256
_SORTED_GROWTH = 8

# Logits are float32, and so is what they are scaled by.
_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Raises UsageError on a value that makes no sense.

    `temperature` 0 means greedy: the most likely token, always; so does one under the smallest
    float32. `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 mean off. Without a `seed`,
    every Sampler draws other tokens.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        temperature, penalty = self.temperature, self.repetition_penalty
        _require(
            0 <= temperature <= _LARGEST,
            "temperature",
            temperature,
            f"0 (greedy) to {_LARGEST:.1e}, the range of float32",
        )
        _require(_is_whole(self.top_k), "top_k", self.top_k, "0 (off) or more")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0, up to 1 (off)")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "0 (off) to 1")
        _require(
            _SMALLEST <= penalty <= _LARGEST,
            "repetition_penalty",
            penalty,
            f"{_SMALLEST:.1e} to {_LARGEST:.1e}, the range of float32; 1 is off",
        )
        _require(self.seed is None or _is_whole(self.seed), "seed", self.seed, "0 or more")

    @staticmethod
    def greedy() -> Sampling:
        """Always the most likely token."""
        return Sampling(temperature=0.0)


class Sampler:
    """Draws tokens, one after the other. Two with the same settings and seed draw the same."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    @cached_property
    def _random(self) -> random.Random:
        """Made when first drawn from. NumPy's would take 7 MB more, half of that OpenSSL."""
        import random

        seed = self.sampling.seed
        return random.Random(None if seed is None else int(seed))  # noqa: S311

    @property
    def takes_best(self) -> bool:
        """Whether every token is the likeliest of the logits as they are."""
        return np.float32(self.sampling.temperature) == 0 and self.sampling.repetition_penalty == 1

    def pick(self, logits: NDArray[np.float32], history: Sequence[int] = ()) -> int:
        """The next token for logits [vocabulary].

        `history` is the prompt and what was generated, for the repetition penalty. Raises BadTokens
        where no token can be drawn: NaN, infinity, or every token ruled out.
        """
        ids, probabilities = self.distribution(logits, history)
        if len(ids) == 1:
            return int(ids[0])
        sums = np.cumsum(probabilities)
        index = np.searchsorted(sums, self._random.random() * sums[-1], side="right")
        return int(ids[min(int(index), len(ids) - 1)])

    def distribution(
        self, logits: NDArray[np.float32], history: Sequence[int] = ()
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Token ids that may be drawn, ascending, and their probabilities, which sum to 1.

        Takes and raises what `pick` does, and draws nothing. Greedy: the one token, the lowest id
        among equals, with probability 1.
        """
        sampling = self.sampling
        scores = np.asarray(logits, dtype=np.float32)  # [vocabulary]
        if sampling.repetition_penalty != 1:
            scores = _penalized(scores, history, sampling.repetition_penalty)
        best = _best(scores)
        temperature = np.float32(sampling.temperature)
        if temperature == 0:
            return np.array([best], np.int64), np.ones(1)
        # From here on the best score is 0: what a low temperature blows up goes to -infinity.
        with np.errstate(over="ignore"):
            scores = (scores - scores[best]) / temperature
        ids = np.flatnonzero(scores > -np.inf)
        ids = _top_k(scores, ids, sampling.top_k)
        ids = _top_p(scores, ids, sampling.top_p)
        ids = _min_p(scores, ids, sampling.min_p)
        weights = np.exp(scores[ids], dtype=np.float64)
        return ids, weights / weights.sum()


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and int(value) >= 0


def _require(fits: bool, name: str, value: float | None, range_: str) -> None:
    if not fits:
        raise UsageError(f"{name} is {value}", f"give {range_}")


def _penalized(
    scores: NDArray[np.float32], history: Sequence[int], penalty: float
) -> NDArray[np.float32]:
    """Every token seen, once: score / penalty where it is positive, else score * penalty.

    A finite score stays finite.
    """
    seen = np.unique(np.asarray(history, dtype=np.int64))
    if seen.size and not 0 <= seen[0] <= seen[-1] < len(scores):
        raise BadTokens(
            f"the history holds tokens {seen[0]} to {seen[-1]}, the vocabulary {len(scores)}",
            "give only ids that the model's own tokenizer made",
        )
    scores = scores.copy()
    at = scores[seen]
    with np.errstate(over="ignore"):
        moved = np.where(at > 0, at / np.float32(penalty), at * np.float32(penalty))
    largest = np.float32(_LARGEST)
    scores[seen] = np.where(np.isfinite(at), np.clip(moved, -largest, largest), at)
    return scores


def _best(scores: NDArray[np.float32]) -> int:
    """The token with the highest score. Raises BadTokens where there is none.

    argmax takes NaN for the highest, so one look at its value finds NaN and both infinities.
    """
    if scores.ndim != 1 or not scores.size:
        raise BadTokens(f"logits are {list(scores.shape)}, need [vocabulary]")
    best = int(np.argmax(scores))
    require_finite(float(scores[best]))
    return best


def require_finite(best: float) -> None:
    """Check the best of the logits. Raises BadTokens."""
    if not math.isfinite(best):
        raise BadTokens(
            f"the best of the logits is {best}, need a finite one",
            "check the bundle with `lutra verify`, or convert the model again",
        )


def _top_k(scores: NDArray[np.float32], ids: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The k best of `ids`, and all that equal the last of them."""
    if not 0 < k < len(ids):
        return ids
    candidates = scores[ids]
    kept: NDArray[np.bool_] = candidates >= np.partition(candidates, -k)[-k]
    return ids[kept]


def _top_p(scores: NDArray[np.float32], ids: NDArray[np.int64], p: float) -> NDArray[np.int64]:
    """The fewest best of `ids` whose probabilities sum to p; among equals, the lowest ids."""
    if p >= 1:
        return ids
    weights = np.exp(scores[ids], dtype=np.float64)
    mass = p * weights.sum()
    count = _FIRST_SORTED
    while True:
        order = _heaviest(weights, count)
        above = np.cumsum(weights[order]) - weights[order]  # weight of all that are better
        if count >= len(ids) or above[-1] >= mass:
            return np.sort(ids[order[above < mass]])
        count *= _SORTED_GROWTH


def _heaviest(weights: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Indices of the `count` largest weights, and of all equal to the last; largest first."""
    indices = np.arange(len(weights))
    if count < len(weights):
        indices = np.flatnonzero(weights >= np.partition(weights, -count)[-count])
    return indices[np.argsort(-weights[indices], kind="stable")]


def _min_p(scores: NDArray[np.float32], ids: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Those of `ids` at least `share` times as likely as the best, whose score is 0."""
    if share == 0:
        return ids
    return ids[scores[ids] >= math.log(share)]
