"""Reads a checkpoint's config.json strictly: every key is used, known to be inert, or refused.

A key that changes the math and is silently ignored gives wrong text, so a key that no model file
reads stops the conversion and is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edge.errors import UnsupportedMath

# Keys that do not change what an inference computes.
_INERT_WORDS = """
    add_cross_attention architectures attention_dropout _attn_implementation attn_implementation
    _attn_implementation_autoset auto_map bad_words_ids begin_suppress_tokens bos_token_id
    cache_implementation chunk_size_feed_forward cross_attention_hidden_size do_sample dtype
    embd_pdrop eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id hidden_dropout id2label initializer_range is_decoder is_encoder_decoder
    is_llama_config keys_to_ignore_at_inference label2id length_penalty max_length min_length
    model_type _name_or_path num_beams num_return_sequences output_attentions output_hidden_states
    output_scores pad_token_id prefix pretraining_tp problem_type pruned_heads
    remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class
    top_k top_p torch_dtype torchscript transformers.js_config transformers_version typical_p
    unsloth_fixed unsloth_version use_bfloat16 use_cache
"""
INERT = frozenset(_INERT_WORDS.split())

_MISSING = object()

# No width or count of a model comes near; more would only ask for more memory than there is.
_LARGEST = 2**31 - 1


class Config:
    """A config's values, with a record of which keys were read.

    `where` is put before keys in errors ("text_config." for a nested config).
    """

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values = dict(values)
        self.where = where
        self._read: set[str] = set()

    def assume(self, values: Mapping[str, Any]) -> None:
        """Fill in keys that the file leaves out, as the model's class in Transformers does."""
        self.values = {**values, **self.values}

    def integer(
        self, key: str, default: int | None = None, *, least: int = 1, most: int = _LARGEST
    ) -> int:
        """A whole number from `least` to `most`, which is below 2^31."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, f"a whole number from {least} on")
        if not least <= value <= most:
            bound = "below 2^31" if most == _LARGEST else f"to {most}"
            raise self._wrong(key, value, f"a whole number from {least} on, {bound}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise self._wrong(key, value, "a number above 0")
        return float(value)

    def optional_integer(self, key: str) -> int | None:
        """A whole number above 0, or None where the key is absent or null."""
        return None if self.peek(key) is None else self.integer(key)

    def optional_number(self, key: str) -> float | None:
        """A number, or None where the key is absent or null."""
        return None if self.peek(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def choice(self, key: str, options: Iterable[str], default: str | None = None) -> str:
        """One of the options that the model file implements."""
        value, known = self._get(key, default), list(options)
        if value not in known:
            raise self.unsupported(key, f"need {' or '.join(known)}")
        return str(value)

    def integers(self, key: str) -> tuple[int, ...] | None:
        """A list of whole numbers, or None where the key is absent or null."""
        value = self.peek(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self._wrong(key, value, "a list of whole numbers")
        return tuple(value)

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """A list of `length` numbers."""
        value = self._get(key, None)
        if not isinstance(value, list) or len(value) != length:
            raise self._wrong(key, value, f"a list of {length} numbers")
        if not all(type(item) in (int, float) for item in value):
            raise self._wrong(key, value, "a list of numbers")
        return tuple(float(item) for item in value)

    def names(self, key: str, length: int) -> tuple[str, ...] | None:
        """A list of `length` names, or None where the key is absent or null."""
        value = self.peek(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length:
            raise self._wrong(key, value, f"a list of {length} names")
        return tuple(str(item) for item in value)

    def section(self, key: str) -> Config | None:
        """A nested config, or None where the key is absent or null; it wants its own `finish`."""
        value = self.peek(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "an object")
        return Config(value, f"{self.where}{key}.")

    def peek(self, key: str) -> Any:
        """The raw value or None; counts as read."""
        self._read.add(key)
        return self.values.get(key)

    def ignore(self, *keys: str) -> None:
        """Say of keys that they do not change this model's math."""
        self._read.update(keys)

    def unsupported(self, key: str, need: str) -> UnsupportedMath:
        """The error for a key whose value asks for math that is not there."""
        return UnsupportedMath(
            f"config key {self.where}{key} is {_short(self.values.get(key))}: {need}",
            "this checkpoint needs math that its model file does not implement",
        )

    def finish(self) -> None:
        """Refuse keys that nobody read. Raises UnsupportedMath naming the first."""
        for key in self.values:
            if key not in self._read and key not in INERT and self.values[key] not in _OFF:
                raise self.unsupported(key, "no math for this key")

    def _get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        value = self.values.get(key, _MISSING)
        if value is _MISSING or value is None:
            if default is None:
                raise UnsupportedMath(
                    f"config key {self.where}{key} is missing", "check the checkpoint's config.json"
                )
            return default
        return value

    def _wrong(self, key: str, value: Any, need: str) -> UnsupportedMath:
        return UnsupportedMath(
            f"config key {self.where}{key} is {_short(value)}, need {need}",
            "check the checkpoint's config.json",
        )


# Values that switch nothing on.
_OFF: tuple[Any, ...] = (None, False, {}, [], "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
