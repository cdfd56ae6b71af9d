"""What a checkpoint says about text: its tokenizer, special tokens, end tokens, chat template.

It says so in up to six files, some of which overrule others. A bundle gets one tokenizer.json that
means by itself what AutoTokenizer of Transformers 5 makes of all of them, and one record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from converter.sources.source import Source
from edge.errors import MissingDependency, TruncatedSource
from edge.manifest import TOKENIZER, TokenizerRecord
from edge.tokenizer import Tokenizer

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"

# Model types whose tokenizer.json Transformers takes as it is, although their tokenizer_config.json
# may name LlamaTokenizer (its MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS and its mapping).
_TAKEN_AS_IS = ("mistral", "phi3", "qwen2")


@dataclass(frozen=True)
class TokenizerFiles:
    """The parsed files that say something about text; empty where one is not there.

    `tokenizer` is tokenizer.json; `config` tokenizer_config.json with what older checkpoints put
    into special_tokens_map.json; `template` chat_template.jinja.
    """

    model: Mapping[str, Any]
    generation: Mapping[str, Any]
    config: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    template: str | None = None

    @staticmethod
    def read(checkpoint: Source) -> TokenizerFiles:
        """Read them. Raises TruncatedSource."""
        config = checkpoint.read_json(CONFIG)
        if "added_tokens_decoder" not in config:  # as Transformers has it: then the map is stale
            config |= checkpoint.read_json("special_tokens_map.json")
        template = checkpoint.read_bytes(TEMPLATE)
        return TokenizerFiles(
            model=checkpoint.config,
            generation=checkpoint.read_json("generation_config.json"),
            config=config,
            tokenizer=checkpoint.read_json(TOKENIZER),
            template=None if template is None else _text(template, TEMPLATE),
        )


def read_tokenizer(checkpoint: Source) -> tuple[TokenizerRecord, bytes | None]:
    """The record and the tokenizer.json for a bundle; None where the checkpoint has none.

    Raises TruncatedSource where a file is not what it should be.
    """
    files = TokenizerFiles.read(checkpoint)
    record = read_record(files)
    content = checkpoint.read_bytes(TOKENIZER)
    if content is None:
        return record, None
    if not files.tokenizer:
        raise _wrong(TOKENIZER, "an empty object")
    whole = self_contained(files)
    if whole != files.tokenizer:
        content = json.dumps(whole, ensure_ascii=False).encode()
    with suppress(MissingDependency):  # a conversion can do without the tokenizers package
        Tokenizer(content, checkpoint.folder / TOKENIZER)
    return record, content


def read_record(files: TokenizerFiles) -> TokenizerRecord:
    """Which tokens begin and end a text, what special tokens are called, and the chat template.

    A text ends at every token that any file calls its end: a chat model's end of turn is often in
    generation_config.json alone, a base model's end of text in config.json alone.
    """
    vocabulary = read_vocabulary(files.tokenizer)
    special = special_tokens(files.config)
    ends = [
        *_ids(files.generation, "eos_token_id"),
        *_ids(files.model, "eos_token_id"),
        *_known(vocabulary, special.get("eos_token")),
    ]
    begins = [
        *_known(vocabulary, special.get("bos_token")),
        *_ids(files.generation, "bos_token_id"),
        *_ids(files.model, "bos_token_id"),
    ]
    return TokenizerRecord(
        bos_id=begins[0] if begins else None,
        eos_ids=tuple(dict.fromkeys(ends)),
        special_tokens=special,
        chat_template=files.template or _template(files.config.get("chat_template")),
    )


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the special tokens that tokenizer_config.json names, as "bos_token": "<s>"."""
    named = {key: _content(value) for key, value in config.items() if key.endswith("_token")}
    return {key: text for key, text in named.items() if text is not None}


def read_vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Id of every token of a tokenizer.json; empty for an empty one. Raises TruncatedSource."""
    if not tokenizer:
        return {}
    try:
        listed = tokenizer["model"]["vocab"]
        if isinstance(listed, list):  # Unigram: [text, score] by id
            listed = {entry[0]: index for index, entry in enumerate(listed)}
        added = {token["content"]: int(token["id"]) for token in tokenizer["added_tokens"]}
        vocabulary = {**listed, **added}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _wrong(TOKENIZER, f"no vocabulary in it ({type(error).__name__}: {error})") from error
    for text, number in vocabulary.items():
        if type(number) is not int:
            raise _wrong(TOKENIZER, f"the id of token {text!r} is {number!r}")
    return vocabulary


# One tokenizer.json out of several files.


def self_contained(files: TokenizerFiles) -> dict[str, Any]:
    """tokenizer.json with what tokenizer_config.json changes about it written into it.

    That is: added tokens that the config declares otherwise, special tokens that are only in the
    vocabulary, and the treatment of spaces by the class LlamaTokenizer. Not its add_bos_token and
    add_eos_token: Transformers 5 drops both where there is a tokenizer.json.
    """
    whole = dict(files.tokenizer)
    whole["added_tokens"] = _added_tokens(files)
    if _has_llama_spaces(files):
        whole |= _llama_spaces(files.config)
    return whole


def _added_tokens(files: TokenizerFiles) -> list[dict[str, Any]]:
    vocabulary = read_vocabulary(files.tokenizer)
    listed = {token["content"]: token for token in files.tokenizer["added_tokens"]}
    special = set(special_tokens(files.config).values())
    for token in _declared(files.config):
        text, known = token["content"], listed.get(token["content"])
        if known is None or {**known, "id": token["id"]} != token:
            token["special"] |= text in special
            listed[text] = token | {"id": vocabulary.get(text, token["id"])}
    for text in sorted(special | set(_extra(files.config))):
        if text not in listed and text in vocabulary:
            listed[text] = _token(vocabulary[text], {"content": text, "special": True})
    return sorted(listed.values(), key=lambda token: int(token["id"]))


def _declared(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tokens of added_tokens_decoder, in the form that tokenizer.json has them in."""
    declared = config.get("added_tokens_decoder") or {}
    try:
        return [_token(int(number), token) for number, token in declared.items()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        detail = f"added_tokens_decoder: {type(error).__name__}: {error}"
        raise _wrong(CONFIG, detail) from error


def _token(number: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    special = bool(fields.get("special", False))
    return {
        "id": number,
        "content": str(fields["content"]),
        "single_word": bool(fields.get("single_word", False)),
        "lstrip": bool(fields.get("lstrip", False)),
        "rstrip": bool(fields.get("rstrip", False)),
        "normalized": bool(fields.get("normalized", not special)),
        "special": special,
    }


def _extra(config: Mapping[str, Any]) -> Iterator[str]:
    """Special tokens without a name of their own: a list, or by name in newer files."""
    for key in ("extra_special_tokens", "additional_special_tokens"):
        listed = config.get(key) or []
        if not isinstance(listed, list | dict):
            raise _wrong(CONFIG, f"{key} is {listed!r}, need a list or an object")
        for value in listed.values() if isinstance(listed, dict) else listed:
            text = _content(value)
            if text is None:
                raise _wrong(CONFIG, f"{key} holds {value!r}, need the text of a token")
            yield text


def _has_llama_spaces(files: TokenizerFiles) -> bool:
    """Whether Transformers takes only vocabulary and merges from the file (LlamaTokenizer)."""
    name = str(files.config.get("tokenizer_class")).removesuffix("Fast")
    return (
        name == "LlamaTokenizer"
        and files.model.get("model_type") not in _TAKEN_AS_IS
        and files.tokenizer["model"].get("type") == "BPE"
        and '"ByteLevel"' not in json.dumps(files.tokenizer)
    )


def _llama_spaces(config: Mapping[str, Any]) -> dict[str, Any]:
    """How LlamaTokenizer treats spaces: one goes before a text, but not behind a special token.

    The files of the Llama 2 family say otherwise (a space behind every special token), which was
    an error that `legacy` keeps.
    """
    prefix = config.get("add_prefix_space") is not False
    scheme = ("always" if config.get("legacy") else "first") if prefix else "never"
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": scheme,
            "split": False,
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
    }


# Values that come in several forms.


def _content(value: object) -> str | None:
    """The text of a special token: the text itself, or an object that holds it."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _known(vocabulary: Mapping[str, int], text: str | None) -> list[int]:
    return [] if text is None or text not in vocabulary else [vocabulary[text]]


def _ids(config: Mapping[str, Any], key: str) -> list[int]:
    """Token ids given as one number or a list; -1, which some files use for none, is left out."""
    value = config.get(key)
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(number) is int for number in numbers):
        raise TruncatedSource(f"{key} is {value!r}", "make it a token id or a list of them")
    return [number for number in numbers if number >= 0]


def _template(value: object) -> str | None:
    """The chat template: one text, or several by name, of which "default" counts.

    Raises TruncatedSource for any other form.
    """
    match value:
        case None | str():
            return value
        case list():
            named = dict(map(_named_template, value))
        case dict():
            named = dict(_named_template({"name": n, "template": t}) for n, t in value.items())
        case _:
            raise _wrong(CONFIG, f"chat_template is {value!r}, need a text, or texts by name")
    return named.get("default", next(iter(named.values())) if len(named) == 1 else None)


def _named_template(entry: object) -> tuple[str, str]:
    match entry:
        case {"name": str() as name, "template": str() as template}:
            return name, template
    raise _wrong(CONFIG, f"chat_template holds {entry!r}, need a name and a template, both texts")


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _wrong(name, f"not UTF-8 ({error})") from error


def _wrong(name: str, detail: str) -> TruncatedSource:
    return TruncatedSource(f"{name}: {detail}", "download it again")
