"""Mistral 7B and Nemo: Llama with a sliding window on every layer."""

from __future__ import annotations

from converter.models.attention import AttentionMath
from converter.models.builder import Builder, Model
from converter.models.config import Config
from converter.models.feed_forward import FeedForwardMath
from converter.models.llama import build_decoder
from converter.models.rope import read_rotation
from converter.models.sizes import read_sizes


def build(config: Config, context: int | None) -> Model:
    """The whole model."""
    config.assume({"sliding_window": 4096, "num_key_value_heads": 8})
    sizes = read_sizes(config, context)
    math = AttentionMath(
        rotation=read_rotation(config, sizes.head_dim, sizes.context),
        scale=sizes.head_dim**-0.5,
        window=config.optional_integer("sliding_window"),
    )
    b = Builder(sizes.vocabulary, sizes.context)
    tied = config.flag("tie_word_embeddings", False)
    return build_decoder(b, sizes, [math] * sizes.layers, FeedForwardMath(), tied=tied)
