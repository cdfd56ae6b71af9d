"""The sampler against Transformers' processors, and against what the settings promise.

data/sampler.npz holds Transformers' results; data/make_sampler.py made it.
"""

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from edge.errors import BadTokens, UsageError
from edge.sampler import Sampler, Sampling

GOLDEN = np.load(Path(__file__).parent / "data" / "sampler.npz")

Logits = NDArray[np.float32]

# Multiples of 1/64, so that no two are equal, before or after rounding.
LOGITS = arrays.arrays(
    np.int16, st.integers(1, 40), elements=st.integers(-1920, 1920), unique=True
).map(lambda steps: (steps / 64).astype(np.float32))


def probabilities(logits: Logits, sampling: Sampling, history: Any = ()) -> NDArray[np.float64]:
    """The distribution spread over the vocabulary."""
    ids, values = Sampler(sampling).distribution(logits, history)
    assert (np.diff(ids) > 0).all()
    whole = np.zeros(len(logits))
    whole[ids] = values
    return whole


def softmax(logits: Logits) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("case", range(len(GOLDEN["settings"])))
def test_distribution_is_that_of_transformers(case: int) -> None:
    temperature, top_k, top_p, min_p, penalty = GOLDEN["settings"][case].tolist()
    sampling = Sampling(temperature, int(top_k), top_p, min_p, penalty)
    ours = probabilities(GOLDEN["logits"], sampling, GOLDEN["history"].tolist())
    theirs = GOLDEN["probabilities"][case]
    np.testing.assert_array_equal(ours > 0, theirs > 0)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-9)


@given(LOGITS, st.floats(0.05, 5), st.floats(0.05, 1), st.floats(0, 1), st.integers(0, 50))
def test_probabilities_sum_to_1(
    logits: Logits, temperature: float, top_p: float, min_p: float, top_k: int
) -> None:
    ids, values = Sampler(Sampling(temperature, top_k, top_p, min_p)).distribution(logits)
    assert math.isclose(values.sum(), 1, rel_tol=1e-12)
    assert int(np.argmax(logits)) in ids


@given(LOGITS, st.integers(1, 50))
def test_top_k_keeps_the_k_best(logits: Logits, k: int) -> None:
    ids, _ = Sampler(Sampling(top_k=k)).distribution(logits)
    assert set(ids) == set(np.argsort(-logits)[:k])


def test_top_k_keeps_what_equals_the_last() -> None:
    ids, values = Sampler(Sampling(top_k=2)).distribution(np.array([1, 3, 2, 2, 0], np.float32))
    assert ids.tolist() == [1, 2, 3]
    assert values[1] == values[2]


@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_that_reach_p(logits: Logits, p: float) -> None:
    kept = probabilities(logits, Sampling(top_p=p)) > 0
    before = softmax(logits)
    assert kept.any()
    assert before[kept].sum() >= p - 1e-9
    assert before[kept].sum() - before[kept].min() < p + 1e-9
    assert (before[~kept] <= before[kept].min()).all()


@pytest.mark.parametrize("p", [0.2, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0, 0.01, 1, 4])
def test_top_p_over_a_large_vocabulary(p: float, spread: float) -> None:
    """Flat logits need more tokens than the first that are sorted, spread ones fewer."""
    logits = (np.random.default_rng(5).permutation(20_000) / 20_000 * spread).astype(np.float32)
    kept = probabilities(logits, Sampling(top_p=p)) > 0
    mass = np.cumsum(np.sort(softmax(logits))[::-1])
    assert abs(kept.sum() - (np.searchsorted(mass, p) + 1)) <= 1


@given(LOGITS, st.floats(0.001, 1))
def test_min_p_keeps_what_is_likely_enough(logits: Logits, share: float) -> None:
    kept = probabilities(logits, Sampling(min_p=share)) > 0
    before = softmax(logits) / softmax(logits).max()
    assert (before[kept] >= share - 1e-5).all()
    assert (before[~kept] < share + 1e-5).all()


@given(LOGITS, st.floats(0.1, 3), st.lists(st.integers(0, 39), max_size=60))
def test_repetition_penalty_counts_a_token_once(
    logits: Logits, penalty: float, history: list[int]
) -> None:
    seen = [token for token in history if token < len(logits)]
    expected = logits.astype(np.float64)
    for token in set(seen):
        expected[token] *= 1 / penalty if expected[token] > 0 else penalty
    ours = probabilities(logits, Sampling(repetition_penalty=penalty), seen)
    np.testing.assert_allclose(ours, softmax(expected), rtol=1e-3, atol=1e-12)


def test_penalty_leaves_the_logits_alone() -> None:
    logits = np.array([1, 2, 3], np.float32)
    assert Sampler(Sampling(0, repetition_penalty=9)).pick(logits, [2, 1]) == 0
    assert logits.tolist() == [1, 2, 3]


@given(arrays.arrays(np.float32, st.integers(1, 20), elements=st.sampled_from([-1, 0, 2])))
def test_greedy_is_the_lowest_of_the_best(logits: Logits) -> None:
    best = int(np.flatnonzero(logits == logits.max())[0])
    assert Sampler(Sampling.greedy()).pick(logits) == best
    assert Sampler(replace(Sampling.greedy(), top_k=3, top_p=0.5)).pick(logits) == best


def test_greedy_takes_the_penalty() -> None:
    logits = np.array([2, 3], np.float32)
    greedy = replace(Sampling.greedy(), repetition_penalty=2.0)
    assert Sampler(greedy).pick(logits, [1]) == 0


@pytest.fixture(scope="module", autouse=True)
def no_draws_by_chance() -> None:
    """Not here: what a sampler does without a seed is tested too."""


def test_a_seed_makes_draws_repeat() -> None:
    logits = np.zeros(1000, np.float32)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(seed=seed))
        return [sampler.pick(logits) for _ in range(20)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_draws_are_as_frequent_as_probable() -> None:
    logits = np.log(
        np.array([0.5, 0.3, 0.15, 0.05, 0], np.float32),
        where=[1, 1, 1, 1, 0],
        out=np.full(5, -np.inf, np.float32),
    )
    sampler = Sampler(Sampling(seed=3))
    counts = Counter(sampler.pick(logits) for _ in range(20_000))
    shares = [counts[token] / 20_000 for token in range(5)]
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.15, 0.05, 0], atol=0.012)
    assert counts[4] == 0


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-30, 1e-3, 1e30, 3.4e38])
def test_any_temperature_and_any_finite_logits(temperature: float) -> None:
    logits = np.array([-3e38, 0, 3e38, -np.inf], np.float32)
    ids, values = Sampler(Sampling(temperature)).distribution(logits)
    assert np.isfinite(values).all()
    assert 3 not in ids


def test_a_temperature_under_float32_is_greedy() -> None:
    ids, values = Sampler(Sampling(1e-300)).distribution(np.array([1, 3, 3], np.float32))
    assert (ids.tolist(), values.tolist()) == ([1], [1.0])


@pytest.mark.parametrize("penalty", [1.2e-38, 1e-30, 1e30, 3.4e38])
def test_any_penalty_keeps_finite_logits_drawable(penalty: float) -> None:
    logits = np.array([-3e38, -5, 0, 7, 3e38, -np.inf], np.float32)
    ids, values = Sampler(Sampling(repetition_penalty=penalty)).distribution(logits, range(6))
    assert np.isfinite(values).all()
    assert 5 not in ids
    negative = np.full(3, -4, np.float32)
    assert Sampler(Sampling(repetition_penalty=penalty)).pick(negative, [0, 1, 2]) in range(3)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling.greedy(), Sampling(top_k=1)])
@pytest.mark.parametrize(
    "logits", [[0, np.nan, 1], [np.inf, 0], [-np.inf, -np.inf], [np.nan], [], [[1, 2]]], ids=str
)
def test_logits_that_no_token_can_be_drawn_from(sampling: Sampling, logits: list[Any]) -> None:
    with pytest.raises(BadTokens, match="logits"):
        Sampler(sampling).pick(np.array(logits, np.float32))


@pytest.mark.parametrize("token", [-1, 3])
def test_history_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(BadTokens, match="history"):
        Sampler(Sampling(repetition_penalty=2)).pick(np.zeros(3, np.float32), [0, token])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, math.nan, math.inf, 1e39]),
        ("top_k", [-1, 1.5]),
        ("top_p", [0, -1, 1.1, math.nan]),
        ("min_p", [-0.1, 1.1, math.nan]),
        ("repetition_penalty", [0, -1, math.inf, math.nan, 1e-300, 1e39]),
        ("seed", [-1, 0.5]),
    ],
)
def test_settings_out_of_range(name: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(UsageError, match=re.escape(f"{name} is {value}; give ")):
            Sampling(**{name: value})
