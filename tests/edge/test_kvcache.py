from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edge.errors import PromptTooLong, UsageError
from edge.graph import Cache
from edge.kvcache import LEAST, KVCache, decode, default_format, encode, row_length
from edge.target import Target

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


rows = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=3, max_side=40),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@given(x=rows)
def test_int8_is_off_by_half_a_scale_at_most(x: np.ndarray) -> None:
    stored = encode(x, "int8")
    assert stored.shape == (*x.shape[:-1], row_length(x.shape[-1], "int8"))
    halves = np.split(np.abs(x).astype(np.float64), [x.shape[-1] // 2], axis=-1)
    peaks = [np.zeros_like(half) + half.max(-1, keepdims=True, initial=0) for half in halves]
    step = np.concatenate(peaks, axis=-1) / 127 * (1 + 2.0**-8)  # scales have 8 significant bits
    assert (np.abs(decode(stored, "int8") - x.astype(np.float64)) <= 0.501 * step + LEAST).all()


@given(x=rows)
def test_int8_of_what_was_stored_is_the_same_again(x: np.ndarray) -> None:
    once = decode(encode(x, "int8"), "int8")
    np.testing.assert_allclose(decode(encode(once, "int8"), "int8"), once, rtol=1e-6, atol=LEAST)


def test_float_formats_are_numpys() -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    assert np.array_equal(decode(encode(x, "f32"), "f32"), x)
    assert np.array_equal(decode(encode(x, "f16"), "f16"), x.astype(np.float16))


def test_int8_keeps_its_scales_through_appending_and_growing() -> None:
    cache, rng = KVCache((Cache(2, 6),), 2000, "int8"), np.random.default_rng(1)
    x = rng.normal(size=(2, 1800, 6)).astype(np.float32)
    for first in range(0, 1800, 600):
        cache.reserve(600)
        part = x[:, first : first + 600]
        cache.append(0, part, -part)
        cache.advance(600)
    keys, values = cache.filled(0, 0)
    assert np.array_equal(keys, decode(encode(x, "int8"), "int8"))
    assert np.array_equal(values, -keys)


def test_processors_keep_half_the_bytes_and_the_reference_all() -> None:
    assert default_format(Target("ref")) == "f32"
    assert default_format(Target.parse("cpu:x86_64,avx2")) == "f16"


def test_rewinding_forgets_and_overwrites() -> None:
    cache = KVCache(LAYERS, 10)
    fill(cache, 5, 1.0)
    cache.rewind(2)
    fill(cache, 1, 3.0)
    assert cache.filled(0, 0)[0][1, :, 2].tolist() == [1, 1, 3]
    with pytest.raises(UsageError, match="rewind to 4 of a cache that holds 3"):
        cache.rewind(4)


def test_memory_grows_with_use_and_keeps_what_is_there() -> None:
    cache = KVCache(LAYERS, 4000)
    fill(cache, 800, 1.0)
    assert cache.capacity == 1024
    fill(cache, 400, 2.0)
    assert cache.capacity == 2048
    fill(cache, 2800, 3.0)
    assert cache.capacity == 4000
    keys = cache.filled(1, 0)[0][0, :, 7]
    assert np.array_equal(keys, np.repeat([1, 2, 3], [800, 400, 2800]))
    assert cache.byte_count == 4000 * cache.bytes_per_token


def test_growth_that_is_interrupted_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KVCache(LAYERS, 4000)
    fill(cache, 1024, 1.0)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge.kvcache.pages.zeros", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.reserve(1)
    monkeypatch.undo()
    assert cache.capacity == 1024
    fill(cache, 1, 2.0)
    assert cache.filled(0, 0)[0].shape == (2, 1025, 4)


def test_bytes_per_token_counts_keys_and_values_of_all_layers() -> None:
    assert KVCache(LAYERS, 10).bytes_per_token == 2 * (2 * 4 + 8) * 4
    assert KVCache(LAYERS, 10, "f16").bytes_per_token == 2 * (2 * 4 + 8) * 2
    assert KVCache(LAYERS, 10, "int8").bytes_per_token == 2 * (2 * (4 + 4) + (8 + 4))


def test_a_full_cache_takes_no_more() -> None:
    cache = KVCache(LAYERS, 4)
    fill(cache, 4, 1.0)
    with pytest.raises(PromptTooLong, match="5 tokens, the context holds 4"):
        cache.reserve(1)


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(UsageError, match="int3"):
        KVCache(LAYERS, 4, "int3")  # type: ignore[arg-type]
