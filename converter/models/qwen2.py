"""Qwen 1.5, 2 and 2.5: Llama with biases on q, k and v, and windows on the later layers."""

from __future__ import annotations

from converter.models.attention import AttentionMath
from converter.models.builder import Builder, Model
from converter.models.config import Config
from converter.models.feed_forward import FeedForwardMath
from converter.models.layer_types import read_late_windows
from converter.models.llama import build_decoder
from converter.models.rope import read_rotation
from converter.models.sizes import read_sizes


def build(config: Config, context: int | None) -> Model:
    """The whole model."""
    sizes = read_sizes(config, context)
    rotation = read_rotation(config, sizes.head_dim, sizes.context)
    layers = [
        AttentionMath(rotation, sizes.head_dim**-0.5, qkv_bias=True, window=window)
        for window in read_late_windows(config, sizes.layers)
    ]
    b = Builder(sizes.vocabulary, sizes.context)
    tied = config.flag("tie_word_embeddings", False)
    return build_decoder(b, sizes, layers, FeedForwardMath(), tied=tied)
