from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.errors import BadTokens, PromptTooLong
from edge.generate import (
    Ending,
    Record,
    chunk_for,
    join_text,
    prefill,
    stream_records,
    stream_tokens,
)
from edge.graph import Cache
from edge.kvcache import KVCache
from edge.sampler import Sampler, Sampling
from edge.target import Target
from edge.text import TextStream


class Counting:
    """A program whose likeliest next token is always the last plus one; it notes its runs."""

    target = Target("ref")
    chunks = (1, 4, 8)

    def __init__(self) -> None:
        self.runs: list[tuple[int, int, int]] = []

    def run(
        self, tokens: NDArray[np.int32], count: int, cache: KVCache, logit_rows: int
    ) -> NDArray[np.float32]:
        self.runs.append((len(tokens), count, logit_rows))
        cache.advance(count)
        rows = tokens[count - logit_rows : count] if logit_rows else tokens[:0]
        return np.eye(100, dtype=np.float32)[(rows + 1) % 100]


def cache(context: int = 50) -> KVCache:
    return KVCache((Cache(1, 2),), context)


@pytest.mark.parametrize(
    ("count", "chunks"),
    [
        (1, [(1, 1)]),
        (3, [(4, 3)]),
        (8, [(8, 8)]),
        (9, [(8, 8), (1, 1)]),
        (21, [(8, 8), (8, 8), (8, 5)]),
    ],
)
def test_prompts_are_cut_into_chunks_and_the_last_is_padded(
    count: int, chunks: list[tuple[int, int]]
) -> None:
    program = Counting()
    logits = prefill(program, cache(), list(range(count)))
    assert [(size, valid) for size, valid, _ in program.runs] == chunks
    assert [rows for *_, rows in program.runs] == [0] * (len(chunks) - 1) + [1]
    assert logits.argmax(axis=1).tolist() == [count]


def test_all_logits_come_in_order() -> None:
    program = Counting()
    logits = prefill(program, cache(), list(range(11)), all_logits=True)
    assert logits.argmax(axis=1).tolist() == list(range(1, 12))


def test_chunk_for_takes_the_smallest_that_fits() -> None:
    assert [chunk_for(Counting(), n) for n in (1, 2, 4, 5, 8, 100)] == [1, 4, 4, 8, 8, 8]


def test_nothing_to_run_and_too_much() -> None:
    with pytest.raises(BadTokens, match="no tokens"):
        prefill(Counting(), cache(), [])
    with pytest.raises(PromptTooLong, match="51 tokens, the context holds 50"):
        prefill(Counting(), cache(), [0] * 51)


def tokens(history: list[int], context: int = 50) -> Iterator[int]:
    return stream_tokens(Counting(), cache(context), history, Sampler(Sampling.greedy()))


def test_tokens_follow_until_the_context_is_full() -> None:
    history = [3, 4]
    drawn = list(tokens(history, context=6))
    assert drawn == [5, 6, 7, 8, 9]
    assert history == [3, 4, 5, 6, 7, 8, 9]


class Picking(Counting):
    """The same, keeping its logits to itself; `logit` is the best one's."""

    def __init__(self, logit: float = 1.0) -> None:
        super().__init__()
        self.logit = logit

    def best(self, tokens: NDArray[np.int32], count: int, cache: KVCache) -> tuple[int, float]:
        self.runs.append((len(tokens), count, -1))
        cache.advance(count)
        return int(tokens[count - 1] + 1), self.logit


@pytest.mark.parametrize(
    ("sampling", "picked"),
    [
        (Sampling.greedy(), True),
        (Sampling(temperature=1e-50), True),
        (Sampling(temperature=0, repetition_penalty=1.5), False),
        (Sampling(temperature=1e-6, seed=0), False),
    ],
)
def test_logits_are_asked_for_where_they_are_needed(sampling: Sampling, picked: bool) -> None:
    program, history = Picking(), list(range(10))
    drawn = list(stream_tokens(program, cache(12), history, Sampler(sampling)))
    assert drawn == [10, 11, 12]
    assert program.runs == [(8, 8, 0), (4, 2, 1), *[(1, 1, -1 if picked else 1)] * 2]


@pytest.mark.parametrize("logit", [np.nan, np.inf, -np.inf])
def test_a_best_token_without_a_finite_logit_is_refused(logit: float) -> None:
    sampler = Sampler(Sampling.greedy())
    tokens = stream_tokens(Picking(logit), cache(), [1], sampler)
    assert next(tokens) == 2
    with pytest.raises(BadTokens, match=f"the best of the logits is {logit}"):
        next(tokens)


def letters(ids: list[int]) -> str:
    return "".join(chr(96 + i) for i in ids)


def records(ending: Ending, context: int = 50) -> list[Record]:
    stream = TextStream(letters, [])
    return list(stream_records(tokens([0], context), 1, stream, ending))


def test_ends_at_an_end_token_which_is_not_in_the_text() -> None:
    made = records(Ending(frozenset({4})))
    assert join_text(iter(made)) == "abc"
    assert [r.token for r in made] == [1, 2, 3, 4]
    assert [r.finish_reason for r in made] == [None, None, None, "eos"]


def test_ends_at_the_length_limit() -> None:
    made = records(Ending(frozenset(), max_tokens=3))
    assert join_text(iter(made)) == "abc"
    assert made[-1].finish_reason == "length"
    assert made[-1].generated_tokens == 3


def test_ends_at_a_stop_string_and_leaves_it_out() -> None:
    made = records(Ending(frozenset(), stop=("de", "zz")))
    assert join_text(iter(made)) == "abc"
    assert made[-1].finish_reason == "stop"


def test_text_held_back_for_a_stop_string_comes_at_the_end() -> None:
    made = records(Ending(frozenset(), stop=("cdx",), max_tokens=4))
    assert join_text(iter(made)) == "abcd"
    made = records(Ending(frozenset({5}), stop=("cdx",)))
    assert join_text(iter(made)) == "abcd"
    assert made[-1].finish_reason == "eos"


def test_ends_when_the_context_is_full() -> None:
    made = records(Ending(frozenset()), context=4)
    assert join_text(iter(made)) == "abcd"
    assert made[-1].finish_reason == "context"
    assert made[-1].token is None


def test_times_are_the_clocks() -> None:
    ticks = iter([10.0, 12.0, 12.0, 12.5, 13.0, 13.0])
    stream = stream_records(
        tokens([0]),
        1,
        TextStream(letters, []),
        Ending(frozenset(), max_tokens=3),
        lambda: next(ticks),
    )
    last = list(stream)[-1]
    assert last.prefill_s == 2.0
    assert last.prefill_tok_s == 0.5
    assert last.decode_s == 1.0
    assert last.decode_tok_s == 2.0
