"""SmolLM 3: Llama where every fourth layer has no positions (NoPE, arXiv 2501.18795)."""

from __future__ import annotations

from collections.abc import Sequence

from converter.models.attention import AttentionMath
from converter.models.builder import Builder, Model
from converter.models.config import Config
from converter.models.feed_forward import FeedForwardMath
from converter.models.layer_types import FULL, SLIDING, read_layer_types, read_windows
from converter.models.llama import build_decoder
from converter.models.rope import read_rotation
from converter.models.sizes import read_sizes


def build(config: Config, context: int | None) -> Model:
    """The whole model."""
    config.assume({"num_key_value_heads": 4})
    sizes = read_sizes(config, context)
    rotation = read_rotation(config, sizes.head_dim, sizes.context, theta=2e6)
    bias = config.flag("attention_bias", False)
    rotates = _rotates(config, sizes.layers)
    layers = [
        AttentionMath(
            rotation=rotation if rotated else None,
            scale=sizes.head_dim**-0.5,
            qkv_bias=bias,
            output_bias=bias,
            window=window,
        )
        for rotated, window in zip(rotates, _windows(config, rotates), strict=True)
    ]
    mlp = FeedForwardMath(bias=config.flag("mlp_bias", False))
    b = Builder(sizes.vocabulary, sizes.context)
    return build_decoder(b, sizes, layers, mlp, tied=config.flag("tie_word_embeddings", True))


def _rotates(config: Config, layers: int) -> list[bool]:
    """Which layers have positions. `no_rope_layers` says 1 for those that do, despite its name."""
    interval = config.integer("no_rope_layer_interval", 4)
    listed = config.integers("no_rope_layers")
    if listed is None:
        return [(i + 1) % interval != 0 for i in range(layers)]
    if len(listed) < layers:
        raise config.unsupported("no_rope_layers", f"need a number for each of {layers} layers")
    return [bool(number) for number in listed[:layers]]


def _windows(config: Config, rotates: Sequence[bool]) -> list[int | None]:
    """Windows, where there are any, are on the layers without positions unless listed."""
    config.ignore("max_window_layers")  # published, and read by no code
    sliding = config.flag("use_sliding_window", False) and config.peek("sliding_window") is not None
    default = [SLIDING if sliding and not rotated else FULL for rotated in rotates]
    types = read_layer_types(config, default)
    if SLIDING in types and not sliding:
        raise config.unsupported("layer_types", "need use_sliding_window true for sliding layers")
    return read_windows(config, types)
