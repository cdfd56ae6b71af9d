"""Llama 1 to 3, and the decoder that its descendants share."""

from __future__ import annotations

from collections.abc import Sequence

from converter.models.attention import AttentionMath, attention
from converter.models.builder import Builder, Model
from converter.models.config import Config
from converter.models.feed_forward import FeedForwardMath, feed_forward
from converter.models.rope import read_rotation
from converter.models.sizes import Sizes, read_sizes


def build(config: Config, context: int | None) -> Model:
    """The whole model."""
    sizes = read_sizes(config, context)
    bias = config.flag("attention_bias", False)
    math = AttentionMath(
        rotation=read_rotation(config, sizes.head_dim, sizes.context),
        scale=sizes.head_dim**-0.5,
        qkv_bias=bias,
        output_bias=bias,
    )
    mlp = FeedForwardMath(bias=config.flag("mlp_bias", False))
    b = Builder(sizes.vocabulary, sizes.context)
    tied = config.flag("tie_word_embeddings", False)
    return build_decoder(b, sizes, [math] * sizes.layers, mlp, tied=tied)


def build_decoder(
    b: Builder, sizes: Sizes, layers: Sequence[AttentionMath], mlp: FeedForwardMath, *, tied: bool
) -> Model:
    """Embedding, layers that norm before attention and before the feed-forward, head."""
    b.begin("embed")
    x = b.embed("embed_tokens", sizes.hidden, tied=tied)
    for i, math in enumerate(layers):
        b.begin("qkv", i)
        h = b.norm(x, "attention_norm", "input_layernorm", sizes.eps)
        x = b.add(x, attention(b, h, i, sizes, math), "attention_residual")
        b.begin("feed_forward", i)
        h = b.norm(x, "feed_forward_norm", "post_attention_layernorm", sizes.eps)
        x = b.add(x, feed_forward(b, h, sizes, mlp), "residual")
    b.begin("head")
    x = b.norm(b.take(x), "norm", "norm", sizes.eps)
    b.head(x, tied=tied)
    return b.finish()
