"""Pocket's quantized bundle, which comes with the package under the name `pocket`.

It was made of the checkpoint beside it, which is in the repository alone, in apps/pocket by

  lutra convert checkpoint pocket.lutra --weights w4g64 --chunk 32 --overwrite
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apps.pocket.tokenizer import render
from edge.model import Model
from edge.template import Message

NAME = "pocket"
FOLDER = Path(__file__).parent / "pocket.lutra"
CHECKPOINT = Path(__file__).parent / "checkpoint"

# Commands have some 12 tokens and actions as many, so a longer chunk would be padding.
CHUNK = 32


def find_bundle(name: str) -> Path:
    """The folder that a user means: pocket's, unless there is one called so where they are."""
    return FOLDER if name == NAME and not Path(name).exists() else Path(name)


def encode_chat(model: Model, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation with any model; pocket's template is rendered without jinja2.

    So that it answers where NumPy and tokenizers are all there is. Raises BadTemplate.
    """
    if model.bundle.folder == FOLDER:
        return model.tokenizer.encode_chat(render(messages[-1].content))
    return model.encode_chat(messages)
