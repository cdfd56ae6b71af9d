from __future__ import annotations

import numpy as np
import pytest

from edge.errors import PromptTooLong, UsageError
from edge.graph import Cache
from edge.kvcache import KVCache

LAYERS = (Cache(2, 4), Cache(1, 8))


def fill(cache: KVCache, count: int, value: float) -> None:
    cache.reserve(count)
    for layer, spec in enumerate(LAYERS):
        block = np.full((spec.kv_heads, count, spec.head_dim), value, np.float32)
        cache.append(layer, block, -block)
    cache.advance(count)


def test_positions_follow_each_other() -> None:
    cache = KVCache(LAYERS, 10)
    fill(cache, 3, 1.0)
    fill(cache, 2, 2.0)
    keys, values = cache.filled(1, 0)
    assert keys.shape == (1, 5, 8)
    assert keys[0, :, 0].tolist() == [1, 1, 1, 2, 2]
    assert np.array_equal(values, -keys)


def test_rewinding_forgets_and_overwrites() -> None:
    cache = KVCache(LAYERS, 10)
    fill(cache, 5, 1.0)
    cache.rewind(2)
    fill(cache, 1, 3.0)
    assert cache.filled(0, 0)[0][1, :, 2].tolist() == [1, 1, 3]
    with pytest.raises(UsageError, match="rewind to 4 of a cache that holds 3"):
        cache.rewind(4)


def test_memory_grows_with_use_and_keeps_what_is_there() -> None:
    cache = KVCache(LAYERS, 1000)
    fill(cache, 200, 1.0)
    assert cache.capacity == 256
    fill(cache, 100, 2.0)
    assert cache.capacity == 512
    fill(cache, 700, 3.0)
    assert cache.capacity == 1000
    keys = cache.filled(1, 0)[0][0, :, 7]
    assert np.array_equal(keys, np.repeat([1, 2, 3], [200, 100, 700]))


def test_growth_that_is_interrupted_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KVCache(LAYERS, 1000)
    fill(cache, 256, 1.0)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge.kvcache.np.zeros", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.reserve(1)
    monkeypatch.undo()
    assert cache.capacity == 256
    fill(cache, 1, 2.0)
    assert cache.filled(0, 0)[0].shape == (2, 257, 4)


def test_bytes_per_token_counts_keys_and_values_of_all_layers() -> None:
    assert KVCache(LAYERS, 10).bytes_per_token == 2 * (2 * 4 + 8) * 4
    assert KVCache(LAYERS, 10, "f16").bytes_per_token == 2 * (2 * 4 + 8) * 2


def test_a_full_cache_takes_no_more() -> None:
    cache = KVCache(LAYERS, 4)
    fill(cache, 4, 1.0)
    with pytest.raises(PromptTooLong, match="5 tokens, the context holds 4"):
        cache.reserve(1)


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(UsageError, match="int3"):
        KVCache(LAYERS, 4, "int3")  # type: ignore[arg-type]
