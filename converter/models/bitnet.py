"""BitNet b1.58 (arXiv 2402.17764): ternary weights, 8-bit activations, squared ReLU, sub-norms.

Two forms are published: master weights in bfloat16 ("online"), which are made ternary as the
training did it, and weights that are ternary already ("offline"), which are taken as they are.
"""

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
    config.assume({"hidden_act": "relu2", "num_key_value_heads": 5, "rms_norm_eps": 1e-5})
    sizes = read_sizes(config, context)
    bias = config.flag("attention_bias", False)
    math = AttentionMath(
        rotation=read_rotation(config, sizes.head_dim, sizes.context, theta=5e5),
        scale=sizes.head_dim**-0.5,
        qkv_bias=bias,
        output_bias=bias,
        sub_norm="self_attn.attn_sub_norm",
    )
    mlp = FeedForwardMath(sub_norm="mlp.ffn_sub_norm")
    b = Builder(sizes.vocabulary, sizes.context)
    mode = _ternary_mode(config)
    if mode is not None:
        b.linear_transform, b.int8_inputs = "ternarize" if mode == "online" else "as_is", True
    tied = config.flag("tie_word_embeddings", False)
    return build_decoder(b, sizes, [math] * sizes.layers, mlp, tied=tied)


def _ternary_mode(config: Config) -> str | None:
    """Whether linear layers are made ternary here ("online"), are so already, or are not (None)."""
    section = config.section("quantization_config")
    if section is None:
        return None
    section.choice("quant_method", ["bitnet"])
    section.choice("linear_class", ["autobitlinear"], "bitlinear")
    mode = section.choice("quantization_mode", ["online", "offline"], "offline")
    section.ignore("rms_norm_eps")  # of use_rms_norm, which is refused
    section.finish()
    return mode
