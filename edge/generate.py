"""The generation loop, as three nested functions: tokens, text with timings, one string.

Everything that generates (run, chat, a server, the benchmark) sits on one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.backend import PicksBest, Program
from edge.errors import BadTokens
from edge.kvcache import KVCache
from edge.pair import Pair
from edge.sampler import Sampler, require_finite
from edge.text import StopStrings, TextStream

FinishReason = Literal["eos", "stop", "length", "context"]


@dataclass(frozen=True)
class Record:
    """One step of a generation.

    `text` is the new text that is certain, often empty; `token` the token drawn, None for the last
    record where the context was full. `finish_reason` is None until the last record. Rates are
    measured, in tokens a second; decoding's is 0 until the second token. `reused_tokens` of the
    prompt were in the session's cache and not run.
    """

    text: str
    token: int | None
    prompt_tokens: int
    generated_tokens: int
    prefill_s: float
    decode_s: float
    finish_reason: FinishReason | None = None
    reused_tokens: int = 0

    @property
    def prefill_tok_s(self) -> float:
        """Rate over the tokens of the prompt that were run."""
        run = self.prompt_tokens - self.reused_tokens
        return run / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_s(self) -> float:
        """Rate after the first token, whose time is the prefill's."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s else 0.0


@dataclass(frozen=True)
class Ending:
    """When to stop: the ids and strings that end a text, and the most tokens to make."""

    eos_ids: frozenset[int]
    stop: Sequence[str] = ()
    max_tokens: int | None = None


def prefill(
    program: Program,
    cache: KVCache,
    tokens: Sequence[int] | NDArray[np.int32],
    *,
    all_logits: bool = False,
) -> NDArray[np.float32]:
    """Run tokens through the model in chunks, the last one padded.

    Returns logits float32 [tokens, vocabulary], or [1, vocabulary] of the last token alone.
    """
    ids = np.asarray(tokens, np.int32)
    if not len(ids):
        raise BadTokens("no tokens to run", "give a prompt, or token ids")
    cache.require(len(ids))
    if isinstance(program, Pair) and len(ids) > 1:
        return program.prompt.run_prompt(ids, cache, len(ids) if all_logits else 1)
    logits, start = [], 0
    while start < len(ids):
        size = chunk_for(program, len(ids) - start)
        chunk = ids[start : start + size]
        start += len(chunk)
        wanted = len(chunk) if all_logits else int(start == len(ids))
        padded = np.pad(chunk, (0, size - len(chunk)))
        logits.append(program.run(padded, len(chunk), cache, wanted))
    return np.concatenate(logits)


def chunk_for(program: Program, count: int) -> int:
    """The smallest chunk that takes `count` tokens, else the largest there is."""
    return next((size for size in program.chunks if size >= count), program.chunks[-1])


def stream_tokens(
    program: Program, cache: KVCache, history: list[int], sampler: Sampler
) -> Iterator[int]:
    """Draw tokens one after another, until the context is full.

    `history` is all tokens so far; those that the cache does not hold yet are run first. Tokens
    drawn are appended to it. When the consumer stops, the cache holds all but the last.
    """
    token = sampler.pick(prefill(program, cache, history[cache.length :])[-1], history)
    while True:
        history.append(token)
        yield token
        if cache.length >= cache.context:
            return
        token = _next(program, cache, sampler, history)


def _next(program: Program, cache: KVCache, sampler: Sampler, history: Sequence[int]) -> int:
    """Run the last token, and draw the one behind it."""
    decode = program.decode if isinstance(program, Pair) else program
    if not (sampler.takes_best and isinstance(decode, PicksBest)):
        return sampler.pick(prefill(program, cache, history[-1:])[-1], history)
    tokens = np.zeros(chunk_for(decode, 1), np.int32)
    tokens[0] = history[-1]
    token, logit = decode.best(tokens, 1, cache)
    require_finite(logit)
    return token


def stream_records(
    tokens: Iterator[int],
    prompt_tokens: int,
    text: TextStream,
    ending: Ending,
    clock: Callable[[], float] = time.perf_counter,
    *,
    reused_tokens: int = 0,
) -> Iterator[Record]:
    """Turn tokens into text and say when and why it ends.

    A token that ends the text is in its record but not in the text.
    """
    return _RecordStream(prompt_tokens, reused_tokens, text, ending, clock).run(tokens)


class _RecordStream:
    """The state of one `stream_records`."""

    def __init__(
        self,
        prompt_tokens: int,
        reused_tokens: int,
        text: TextStream,
        ending: Ending,
        clock: Callable[[], float],
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.reused_tokens = reused_tokens
        self.text = text
        self.ending = ending
        self.stops = StopStrings(ending.stop)
        self.clock = clock
        self.start = self.first = 0.0
        self.count = 0

    def run(self, tokens: Iterator[int]) -> Iterator[Record]:
        self.start = self.clock()
        for token in tokens:
            self.count += 1
            if self.count == 1:
                self.first = self.clock()
            record = self.step(token)
            yield record
            if record.finish_reason is not None:
                return
        yield self.record(self.flush(), None, "context")

    def step(self, token: int) -> Record:
        if token in self.ending.eos_ids:
            return self.record(self.flush(), token, "eos")
        safe, matched = self.stops.feed(self.text.feed(token))
        if matched is not None:
            return self.record(safe, token, "stop")
        if self.count == self.ending.max_tokens:
            return self.last(safe, token)
        return self.record(safe, token, None)

    def last(self, safe: str, token: int) -> Record:
        """The record at the length limit: what was held back may still hold a stop string."""
        more, matched = self.stops.feed(self.text.flush())
        reason: FinishReason = "length" if matched is None else "stop"
        rest = "" if matched is not None else self.stops.flush()
        return self.record(safe + more + rest, token, reason)

    def flush(self) -> str:
        more, matched = self.stops.feed(self.text.flush())
        return more if matched is not None else more + self.stops.flush()

    def record(self, text: str, token: int | None, reason: FinishReason | None) -> Record:
        return Record(
            text,
            token,
            self.prompt_tokens,
            self.count,
            prefill_s=self.first - self.start,
            decode_s=self.clock() - self.first,
            finish_reason=reason,
            reused_tokens=self.reused_tokens,
        )


def join_text(records: Iterator[Record]) -> str:
    """The whole text of a stream."""
    return "".join(record.text for record in records)
