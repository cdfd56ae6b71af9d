"""The tokenizer in a GGUF file's metadata, as the files of a Hugging Face checkpoint.

Two kinds: "llama" is SentencePiece BPE, tokens with scores, whose merges are read off the
vocabulary; "gpt2" is byte-level BPE with its merges, whose regular expression the file gives by a
name that stands for code in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converter.sources.gguf_header import Value
from edge.errors import TruncatedSource, UnsupportedMath
from edge.manifest import TOKENIZER

_PREFIX = "tokenizer.ggml."

# Token types.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6

_SPACE = "\u2581"

# Which special tokens a file names, and what tokenizer_config.json calls them.
_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_ENDS = ("eos", "eot", "eom")

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_QWEN2 = rf"{_CONTRACTION}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+%s"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*%s"
)
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT4O = rf"{_CASED % ((_CONTRACTION + '?',) * 2)}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_TAIL}"
_TEKKEN = rf"{_CASED % ('', '')}|\p{{N}}|{_SYMBOLS}|{_TAIL}"


@dataclass(frozen=True)
class _Split:
    """How a byte-level tokenizer cuts text before merging.

    `digits` cuts every digit off first; `whole` takes a piece that is a token as it is (tokenizers
    calls it ignore_merges); `composed` composes accents (NFC), as the checkpoint's own tokenizer
    does where llama.cpp does not.
    """

    pattern: str
    digits: bool = False
    whole: bool = False
    composed: bool = False
    add_bos: bool = False


_SPLITS = {
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "olmo"), _Split(_GPT2)),
    **dict.fromkeys(("smollm", "starcoder", "codeshell", "refact"), _Split(_GPT2, digits=True)),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3"),
        _Split(_LLAMA3, whole=True, add_bos=True),
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _Split(_QWEN2, composed=True)),
    **dict.fromkeys(("gpt-4o", "llama4"), _Split(_GPT4O)),
    "tekken": _Split(_TEKKEN, whole=True, add_bos=True),
}


@dataclass(frozen=True)
class _Vocabulary:
    """Tokens by id with their types, as a file has them."""

    path: Path
    metadata: Mapping[str, Value]
    tokens: list[str]
    types: list[int]

    def get(self, key: str, default: Value | None = None) -> Value | None:
        return self.metadata.get(_PREFIX + key, default)

    def token(self, name: str) -> int | None:
        """The id of a special token that the file names."""
        number = self.get(f"{name}_token_id")
        if number is None:
            return None
        if type(number) is not int or not 0 <= number < len(self.tokens):
            raise self.wrong(f"{name}_token_id is {number!r} of {len(self.tokens)} tokens")
        return number

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(f"{key} is {value!r}, need true or false")
        return value

    def wrong(self, found: str) -> TruncatedSource:
        return TruncatedSource(f"{self.path}: tokenizer: {found}", "get another copy of the file")


def tokenizer_files(path: Path, metadata: Mapping[str, Value]) -> dict[str, dict[str, Any]]:
    """tokenizer.json, tokenizer_config.json and generation_config.json; none without a vocabulary.

    Raises TruncatedSource for lists that do not fit together, UnsupportedMath for a kind of
    tokenizer or a regular expression that is not known.
    """
    kind = metadata.get(_PREFIX + "model")
    if kind in (None, "no_vocab", "none"):
        return {}
    vocabulary = _read_vocabulary(path, metadata)
    match kind:
        case "llama":
            made = _sentencepiece(vocabulary)
        case "gpt2":
            made = _byte_level(vocabulary)
        case _:
            raise UnsupportedMath(
                f"{path}: a tokenizer of kind {kind!r}, need llama or gpt2",
                "convert from the Hugging Face checkpoint that the file was made from",
            )
    return {
        TOKENIZER: made,
        "tokenizer_config.json": _config(vocabulary),
        "generation_config.json": _generation(vocabulary),
    }


def _read_vocabulary(path: Path, metadata: Mapping[str, Value]) -> _Vocabulary:
    tokens, types = metadata.get(_PREFIX + "tokens"), metadata.get(_PREFIX + "token_type")
    vocabulary = _Vocabulary(path, metadata, [], [])
    if not isinstance(tokens, list) or not tokens:
        raise vocabulary.wrong("no tokens")
    if len(set(tokens)) != len(tokens):
        raise vocabulary.wrong("two tokens are the same")
    if types is None:
        types = np.ones(len(tokens), np.int32)
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise vocabulary.wrong("token_type has another length than tokens")
    return _Vocabulary(path, metadata, tokens, [int(kind) for kind in types])


# The two kinds.


def _sentencepiece(v: _Vocabulary) -> dict[str, Any]:
    """BPE over characters with byte fallback; spaces are U+2581."""
    scores = v.get("scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(v.tokens):
        raise v.wrong("scores have another length than tokens")
    prefix = v.flag("add_space_prefix", True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    first = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    unknown = v.token("unknown")
    pieces = [_escaped(t, kind) for t, kind in zip(v.tokens, v.types, strict=True)]
    if len(set(pieces)) != len(pieces):
        raise v.wrong("two tokens differ by spaces alone")
    ids = {text: number for number, text in enumerate(pieces)}
    mergeable = {t: n for t, n in ids.items() if v.types[n] not in (_UNKNOWN, _CONTROL, _BYTE)}
    return _document(
        v,
        ids,
        _merges_of(mergeable, [float(score) for score in scores]),
        normalizer={"type": "Sequence", "normalizers": [*first, spaces]},
        pre_tokenizer=None,
        decoders=[
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *strip,
        ],
        add_bos=True,
        settings={
            "unk_token": None if unknown is None else pieces[unknown],
            "byte_fallback": True,
            "fuse_unk": True,
        },
    )


def _escaped(text: str, kind: int) -> str:
    """A token as pieces are spelled: user-defined runs of spaces are stored as plain spaces."""
    return text.replace(" ", _SPACE) if kind == _USER_DEFINED and not text.strip(" ") else text


def _merges_of(ids: Mapping[str, int], scores: Sequence[float]) -> list[list[str]]:
    """Every way to make a token of two others, those of the highest score first.

    SentencePiece joins the neighbours whose join has the best score; a list of merges in that
    order does the same.
    """
    found: list[tuple[float, int, int, str, str]] = []
    for text, number in ids.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                found.append((-scores[number], ids[left], ids[right], left, right))
    found.sort()
    return [[left, right] for *_, left, right in found]


def _byte_level(v: _Vocabulary) -> dict[str, Any]:
    """BPE over bytes."""
    merges, name = v.get("merges"), v.get("pre")
    if not isinstance(merges, list):
        raise v.wrong("no merges")
    split = _SPLITS.get(str(name))
    if split is None:
        raise UnsupportedMath(
            f"{v.path}: tokenizer.ggml.pre is {name!r}, need one of {', '.join(_SPLITS)}",
            "convert from the Hugging Face checkpoint that the file was made from",
        )
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps = [
        {"type": "Split", "pattern": {"Regex": split.pattern}, "behavior": "Isolated"}
        | {"invert": False},
        level | {"use_regex": False},
    ]
    if split.digits:
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    pairs = [merge.split(" ") for merge in merges]
    known = set(v.tokens)
    for pair in pairs:
        if len(pair) != 2 or not known.issuperset((*pair, "".join(pair))):
            raise v.wrong(f"merge {' '.join(pair)!r:.80} is not of two tokens into a third")
    return _document(
        v,
        {text: number for number, text in enumerate(v.tokens)},
        pairs,
        normalizer={"type": "NFC"} if split.composed else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": steps},
        decoders=[level | {"use_regex": True}],
        add_bos=split.add_bos,
        settings={
            "unk_token": None,
            "byte_fallback": False,
            "fuse_unk": False,
            "ignore_merges": split.whole,
        },
    )


# What both have.


def _document(
    v: _Vocabulary,
    ids: Mapping[str, int],
    merges: list[list[str]],
    *,
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    decoders: list[dict[str, Any]],
    add_bos: bool,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """A tokenizer.json."""
    model = {
        "type": "BPE",
        "dropout": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "ignore_merges": False,
    }
    decoder = decoders[0] if len(decoders) == 1 else {"type": "Sequence", "decoders": decoders}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added(v)),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": _around(v, add_bos),
        "decoder": decoder,
        "model": model | settings | {"vocab": dict(ids), "merges": merges},
    }


def _added(v: _Vocabulary) -> Iterator[dict[str, Any]]:
    """Tokens that are found in a text before it is cut: control tokens, and user-defined ones."""
    for number, (text, kind) in enumerate(zip(v.tokens, v.types, strict=True)):
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            special = kind != _USER_DEFINED
            yield {"id": number, "content": text, **plain, "special": special}


def _around(v: _Vocabulary, add_bos: bool) -> dict[str, Any] | None:
    """The tokens that go before and after a text."""
    begin = v.token("bos") if v.flag("add_bos_token", add_bos) else None
    end = v.token("eos") if v.flag("add_eos_token", False) else None
    if begin is None and end is None:
        return None
    texts = {number: v.tokens[number] for number in (begin, end) if number is not None}

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        pieces: list[dict[str, Any]] = [{"Sequence": {"id": sequence, "type_id": type_id}}]
        if begin is not None:
            pieces.insert(0, {"SpecialToken": {"id": texts[begin], "type_id": type_id}})
        if end is not None:
            pieces.append({"SpecialToken": {"id": texts[end], "type_id": type_id}})
        return pieces

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            text: {"id": text, "ids": [number], "tokens": [text]} for number, text in texts.items()
        },
    }


def _config(v: _Vocabulary) -> dict[str, Any]:
    named = {key: v.token(name) for name, key in _SPECIAL.items()}
    config: dict[str, Any] = {k: v.tokens[n] for k, n in named.items() if n is not None}
    template = v.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    return config


def _generation(v: _Vocabulary) -> dict[str, Any]:
    ends = [number for name in _ENDS if (number := v.token(name)) is not None]
    begin = v.token("bos")
    return {"eos_token_id": list(dict.fromkeys(ends))} | (
        {} if begin is None else {"bos_token_id": begin}
    )
