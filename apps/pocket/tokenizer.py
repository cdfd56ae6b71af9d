"""Pocket's tokenizer: byte-level BPE, trained on the text that the grammar makes.

Words carry the space before them, digits stand alone, and a key of the JSON with its quotes is one
piece. So that a word has the same tokens in an action as in the command it is copied from, the
text of an argument also begins with a space, which encoding puts in and decoding takes out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import MissingDependency

if TYPE_CHECKING:
    import tokenizers

BOS, EOS, ANSWER = "<s>", "</s>", "<do>"

# A conversation as the model knows it: the last command alone.
CHAT_TEMPLATE = (
    "{{ bos_token }} {{ messages[-1]['content'] | lower | trim }}"
    "{% if add_generation_prompt %}" + ANSWER + "{% endif %}"
)

_PIECES = (
    r'\{"action": "[a-z_]+"|"?, "[a-z]+": "?|"?\}|\d'
    r"| ?[\p{L}\p{M}_]+('[\p{L}]+)?| ?[^\s\p{L}\p{M}\d]+|\s"
)


def render(command: str) -> str:
    """A command as the chat template renders it."""
    return f"{BOS} {command.lower().strip()}{ANSWER}"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> tokenizers.Tokenizer:
    """Train on texts; the same texts give the same tokenizer. Raises MissingDependency."""
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers
        from tokenizers import pre_tokenizers as pre
        from tokenizers.trainers import BpeTrainer
    except ImportError as error:
        raise MissingDependency(
            "training pocket needs the tokenizers package", "pip install tokenizers"
        ) from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace("\u2019", "'"),
            normalizers.Replace(Regex(r'(?<!action)": "(?=[^\d"])'), '": " '),
        ]
    )
    tokenizer.pre_tokenizer = pre.Sequence(
        [pre.Split(Regex(_PIECES), "isolated"), pre.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace('": " ', '": "')])
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, ANSWER],
        initial_alphabet=sorted(pre.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and what Transformers wants beside it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": BOS,
        "eos_token": EOS,
        "chat_template": CHAT_TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
