"""Phi 3, 3.5 and 4: Llama with fused projections, partial rotary heads, longrope and windows."""

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
    config.assume({"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5})
    config.ignore("full_attn_mod", "interpolate_factor")  # published, and read by no code
    sizes = read_sizes(config, context)
    math = AttentionMath(
        rotation=read_rotation(config, sizes.head_dim, sizes.context, partial=True),
        scale=sizes.head_dim**-0.5,
        window=config.optional_integer("sliding_window"),
        fused="self_attn.qkv_proj",
    )
    mlp = FeedForwardMath(fused="mlp.gate_up_proj")
    b = Builder(sizes.vocabulary, sizes.context)
    tied = config.flag("tie_word_embeddings", False)
    return build_decoder(b, sizes, [math] * sizes.layers, mlp, tied=tied)
