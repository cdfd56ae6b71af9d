"""Gemma 2, and the decoder that Gemma 3 shares: norms before and after, that multiply by 1 + w."""

from __future__ import annotations

from collections.abc import Sequence

from converter.models.attention import AttentionMath, attention
from converter.models.builder import Builder, Model
from converter.models.config import Config
from converter.models.feed_forward import FeedForwardMath, feed_forward
from converter.models.layer_types import FULL, SLIDING, read_layer_types, read_windows
from converter.models.rope import read_rotation
from converter.models.sizes import Sizes, read_sizes

# What published files leave out, as the classes in Transformers fill it in.
DEFAULTS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


def build(config: Config, context: int | None) -> Model:
    """The whole model: every other layer slides, scores and logits are capped."""
    config.assume(DEFAULTS)
    config.assume({"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0})
    config.ignore("hidden_act")  # published beside hidden_activation, which counts
    sizes = read_sizes(config, context, "hidden_activation")
    rotation = read_rotation(config, sizes.head_dim, sizes.context)
    default = [FULL if i % 2 else SLIDING for i in range(sizes.layers)]
    softcap = config.optional_number("attn_logit_softcapping")
    bias = config.flag("attention_bias", False)
    layers = [
        AttentionMath(
            rotation=rotation,
            scale=config.number("query_pre_attn_scalar") ** -0.5,
            qkv_bias=bias,
            output_bias=bias,
            window=window,
            softcap=softcap,
        )
        for window in read_windows(config, read_layer_types(config, default))
    ]
    b = Builder(sizes.vocabulary, sizes.context)
    tied = config.flag("tie_word_embeddings", True)
    cap = config.optional_number("final_logit_softcapping")
    return build_decoder(b, sizes, layers, tied=tied, softcap=cap)


def build_decoder(
    b: Builder, sizes: Sizes, layers: Sequence[AttentionMath], *, tied: bool, softcap: float | None
) -> Model:
    """Embedding times sqrt(hidden), layers with four norms, head with a cap.

    Transformers rounds sqrt(hidden) to the embedding's type when it runs in bfloat16; this is what
    it computes in float32.
    """

    def norm(x: str, name: str, source: str) -> str:
        return b.norm(x, name, source, sizes.eps, plus_one=True)

    b.begin("embed")
    x = b.embed("embed_tokens", sizes.hidden, tied=tied, scale=sizes.hidden**0.5)
    for i, math in enumerate(layers):
        b.begin("qkv", i)
        h = norm(x, "attention_norm", "input_layernorm")
        h = attention(b, h, i, sizes, math)
        h = norm(h, "attention_post_norm", "post_attention_layernorm")
        x = b.add(x, h, "attention_residual")
        b.begin("feed_forward", i)
        h = norm(x, "feed_forward_norm", "pre_feedforward_layernorm")
        h = feed_forward(b, h, sizes, FeedForwardMath())
        h = norm(h, "feed_forward_post_norm", "post_feedforward_layernorm")
        x = b.add(x, h, "residual")
    b.begin("head")
    x = norm(b.take(x), "norm", "norm")
    b.head(x, tied=tied, softcap=softcap)
    return b.finish()
