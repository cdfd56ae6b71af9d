"""Qwen 3: Qwen 2 with a norm on every head of q and k, and biases by choice."""

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
    config.assume({"head_dim": 128})
    sizes = read_sizes(config, context)
    rotation = read_rotation(config, sizes.head_dim, sizes.context)
    bias = config.flag("attention_bias", False)
    layers = [
        AttentionMath(
            rotation=rotation,
            scale=sizes.head_dim**-0.5,
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=True,
            window=window,
        )
        for window in read_late_windows(config, sizes.layers)
    ]
    b = Builder(sizes.vocabulary, sizes.context)
    tied = config.flag("tie_word_embeddings", False)
    return build_decoder(b, sizes, layers, FeedForwardMath(), tied=tied)
