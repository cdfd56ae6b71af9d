"""Gemma 3 as published from 4B up: the language model of a checkpoint that also sees images.

The vision tower and its projector are left behind: a bundle takes text alone.
"""

from __future__ import annotations

from converter.models.builder import Builder, Model
from converter.models.config import Config
from converter.models.gemma2 import build_decoder
from converter.models.gemma3_text import read_gemma3_sizes, read_layers
from edge.errors import UnsupportedMath


def build(config: Config, context: int | None) -> Model:
    """The language model, from `text_config`. Raises UnsupportedMath where there is none."""
    config.ignore("vision_config", "mm_tokens_per_image")
    config.ignore("boi_token_index", "eoi_token_index", "image_token_index")
    text = config.section("text_config")
    if text is None:
        raise UnsupportedMath("config key text_config is missing", "convert a whole checkpoint")
    sizes = read_gemma3_sizes(text, context)
    layers = read_layers(text, sizes)
    b = Builder(
        sizes.vocabulary,
        sizes.context,
        stem="language_model.model.",
        head="language_model.lm_head.weight",
        ignored=("vision_tower.*", "multi_modal_projector.*"),
    )
    text.ignore("tie_word_embeddings")  # the outer one counts
    text.finish()
    tied = config.flag("tie_word_embeddings", True)
    return build_decoder(b, sizes, layers, tied=tied, softcap=None)
