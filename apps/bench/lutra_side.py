"""Lutra's side of a benchmark: a bundle loaded with `edge.load` and run as the command line does.

Tokens come from `edge.generate.stream_tokens`, the loop under `lutra run`, drawn greedily on a new
session; no text is made of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import islice

import edge
from apps.bench.worker import Answer, Refusal, peak_rss_bytes
from edge.errors import LutraError
from edge.generate import stream_tokens
from edge.kvcache import CacheFormat
from edge.manifest import WEIGHTS
from edge.model import Model
from edge.sampler import Sampler


class LutraSide:
    """Holds one loaded model."""

    def __init__(self) -> None:
        self._model: Model | None = None
        self._kv_bytes = 0

    @property
    def requests(self) -> Mapping[str, Callable[..., Answer]]:
        return {"load": self.load, "generate": self.generate, "memory": self.memory}

    def load(
        self,
        bundle: str,
        target: str,
        context: int | None,
        cache_format: CacheFormat | None,
        threads: int,
    ) -> Answer:
        """Open a bundle; says how long it took and what it runs on."""
        began = time.perf_counter()
        try:
            model = edge.load(
                bundle, target=target, context=context, cache_format=cache_format, threads=threads
            )
        except LutraError as error:
            raise Refusal(type(error).__name__, error.what, error.cure) from error
        self._model = model
        seconds = time.perf_counter() - began
        return {"load_s": seconds, "target": str(model.program.target), "note": model.note}

    def generate(self, prompt: list[int], count: int) -> Answer:
        """Run a prompt and draw `count` tokens; see `Sample` for the times."""
        assert self._model is not None
        model = self._model
        session = model.session()
        session.reuse(prompt)
        sampler = Sampler(edge.Sampling.greedy())
        tokens = stream_tokens(model.program, session.cache, session.tokens, sampler)
        times = [time.perf_counter()]
        times += (time.perf_counter() for _ in islice(tokens, count))
        self._kv_bytes = session.cache.byte_count
        return {
            "first_token_s": times[1] - times[0],
            "rest_s": times[-1] - times[1],
            "tokens": session.tokens[len(prompt) :],
        }

    def memory(self) -> Answer:
        """The peak of the process, and what it cannot do without: weights, and the last cache."""
        assert self._model is not None
        weights = self._model.bundle.manifest.files[WEIGHTS].byte_count
        return {
            "peak_rss_bytes": peak_rss_bytes(),
            "weights_bytes": weights,
            "kv_bytes": self._kv_bytes,
        }


SIDE = LutraSide()
