"""Gemma 3, text alone: Gemma 2 with QK norm, five sliding layers to a global one, two RoPE bases.

`attn_logit_softcapping` is not implemented: Transformers' own code reads it and leaves it unused,
and published files have null.
"""

from __future__ import annotations

from converter.models.attention import AttentionMath
from converter.models.builder import Builder, Model
from converter.models.config import Config
from converter.models.gemma2 import DEFAULTS, build_decoder
from converter.models.layer_types import FULL, SLIDING, read_layer_types, read_windows
from converter.models.rope import Rotation, make_rotation, rope_section
from converter.models.sizes import Sizes, read_sizes


def build(config: Config, context: int | None) -> Model:
    """The whole model."""
    sizes = read_gemma3_sizes(config, context)
    layers = read_layers(config, sizes)
    b = Builder(sizes.vocabulary, sizes.context)
    tied = config.flag("tie_word_embeddings", True)
    cap = config.optional_number("final_logit_softcapping")
    return build_decoder(b, sizes, layers, tied=tied, softcap=cap)


def read_gemma3_sizes(config: Config, context: int | None) -> Sizes:
    """Widths and counts, where a text_config of a published file leaves out most of them."""
    config.assume(DEFAULTS)
    config.assume({"vocab_size": 262_208, "max_position_embeddings": 131_072})
    return read_sizes(config, context, "hidden_activation")


def read_layers(config: Config, sizes: Sizes) -> list[AttentionMath]:
    """Each layer's attention: a window and local frequencies, or the context and global ones."""
    types = read_layer_types(config, _default_types(config, sizes.layers))
    rotations = _read_rotations(config, sizes)
    bias = config.flag("attention_bias", False)
    return [
        AttentionMath(
            rotation=rotations[kind],
            scale=config.number("query_pre_attn_scalar") ** -0.5,
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=True,
            plus_one=True,
            window=window,
        )
        for kind, window in zip(types, read_windows(config, types), strict=True)
    ]


def _default_types(config: Config, layers: int) -> list[str]:
    pattern = config.integer("sliding_window_pattern", 6)
    config.ignore("_sliding_window_pattern")  # how Transformers 5 writes it beside layer_types
    return [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]


def _read_rotations(config: Config, sizes: Sizes) -> dict[str, Rotation]:
    """Global and local rotations, in either spelling; only the global one is scaled."""
    outer = rope_section(config)
    if FULL in outer.values or SLIDING in outer.values:
        sections = {kind: outer.section(kind) for kind in (FULL, SLIDING)}
        outer.finish()
    else:
        sections = {FULL: outer}
    thetas = {
        FULL: config.number("rope_theta", 1e6),
        SLIDING: config.number("rope_local_base_freq", 1e4),
    }
    names = {FULL: "rope.global", SLIDING: "rope.local"}
    return {
        kind: make_rotation(
            names[kind],
            config,
            sections.get(kind) or Config({}, outer.where),
            thetas[kind],
            sizes.head_dim,
            sizes.context,
        )
        for kind in (FULL, SLIDING)
    }
