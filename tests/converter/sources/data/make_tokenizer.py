"""Makes tokenizer.json: small tokenizers as AutoTokenizer of Transformers reads them.

    python tests/converter/sources/data/make_tokenizer.py

Each case is the files of a checkpoint, and what AutoTokenizer makes of them: ids of TEXT with and
without special tokens around it, and the text of those ids without special tokens.
"""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

TEXT = " ab a</s> b<s>c <x> ab\n a <y>b"

SPECIAL = {"special": True, "normalized": False}


def token(number: int, content: str, **fields: Any) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    return {"id": number, "content": content, **plain, "special": False, **fields}


def with_bos() -> dict[str, Any]:
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, sequence],
        "pair": [bos, sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }


def sentencepiece() -> dict[str, Any]:
    """In the form of Llama 2's."""
    space = "\u2581"
    words = ["<unk>", "<s>", "</s>", space, "a", "b", "c", "<", "x", ">", "y", "\n"]
    merges = [(space, "a"), ("a", "b"), (space, "b"), (space + "a", "b"), (space, space)]
    listed = [*words, *("".join(pair) for pair in merges)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [token(i, words[i], **SPECIAL) for i in range(3)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": space},
                {"type": "Replace", "pattern": {"String": " "}, "content": space},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": with_bos(),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": space}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {word: index for index, word in enumerate(listed)},
            "merges": [list(pair) for pair in merges],
        },
    }


def byte_level() -> dict[str, Any]:
    """In the form of Llama 3's, and cut and padded as files saved after training are."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        "\u0120",
        "a",
        "b",
        "c",
        "<",
        "x",
        ">",
        "y",
        "/",
        "s",
        "\u010a",
    ]
    merges = [("\u0120", "a"), ("a", "b"), ("\u0120", "b"), ("\u0120a", "b")]
    listed = [*words, *("".join(pair) for pair in merges)]
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    whole = sentencepiece()
    whole["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    whole["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    whole["normalizer"] = None
    whole["pre_tokenizer"] = {**plain, "use_regex": True}
    whole["decoder"] = {**plain, "use_regex": True}
    whole["model"] |= {"unk_token": None, "fuse_unk": False, "byte_fallback": False}
    whole["model"]["vocab"] = {word: index for index, word in enumerate(listed)}
    whole["model"]["merges"] = [list(pair) for pair in merges]
    return whole


def without(whole: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A tokenizer with its post-processor or added tokens removed."""
    return whole | {key: [] if key == "added_tokens" else None for key in keys}


NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
FAST = NAMED | {"tokenizer_class": "PreTrainedTokenizerFast"}
LLAMA = NAMED | {"tokenizer_class": "LlamaTokenizer"}

# Neither is a token unless a file says so.
X, Y = token(17, "<x>"), token(18, "<y>")


def declared(*tokens: dict[str, Any]) -> dict[str, Any]:
    """The key of tokenizer_config.json that lists tokens."""
    fields = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in tokens}
    return {"added_tokens_decoder": fields}


def plus(whole: dict[str, Any], *tokens: dict[str, Any]) -> dict[str, Any]:
    return whole | {"added_tokens": [*whole["added_tokens"], *tokens]}


SPM, BYTES = sentencepiece(), byte_level()

# Name -> tokenizer.json, tokenizer_config.json, model_type.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "file alone": (SPM, FAST, "llama"),
    "byte level": (BYTES, FAST, "llama"),
    "byte level called llama": (BYTES, LLAMA, "llama"),
    "told not to add bos": (SPM, FAST | {"add_bos_token": False}, "llama"),
    "told to add eos": (SPM, FAST | {"add_eos_token": True}, "llama"),
    "told to add bos, no processor": (
        without(BYTES, "post_processor"),
        FAST | {"add_bos_token": True},
        "llama",
    ),
    "llama": (SPM, LLAMA, "llama"),
    "llama fast": (SPM, LLAMA | {"tokenizer_class": "LlamaTokenizerFast"}, "llama"),
    "llama legacy": (SPM, LLAMA | {"legacy": True}, "llama"),
    "llama not legacy": (SPM, LLAMA | {"legacy": False, "add_prefix_space": None}, "llama"),
    "llama without prefix": (SPM, LLAMA | {"add_prefix_space": False}, "llama"),
    "llama class in phi3": (SPM, LLAMA, "phi3"),
    "llama class in mistral": (SPM, LLAMA, "mistral"),
    "llama class in gemma2": (SPM, LLAMA, "gemma2"),
    "specials in the vocabulary alone": (without(SPM, "added_tokens"), FAST, "llama"),
    "specials nobody names": (without(SPM, "added_tokens"), {}, "llama"),
    "more specials": (
        plus(SPM, X),
        FAST | {"additional_special_tokens": ["c", "<x>"]},
        "llama",
    ),
    "declared alone": (SPM, FAST | declared(Y, X), "llama"),
    "declared special": (SPM, FAST | declared(X | SPECIAL), "llama"),
    "declared otherwise": (plus(SPM, X | SPECIAL), FAST | declared(X | {"rstrip": True}), "llama"),
    "declared and named": (
        plus(SPM, X),
        FAST | {"pad_token": "<x>"} | declared(X | {"lstrip": True}),
        "llama",
    ),
    "declared new and named": (SPM, FAST | {"pad_token": "<x>"} | declared(X), "llama"),
    "declared special, new and named": (
        SPM,
        FAST | {"pad_token": "<x>"} | declared(X | SPECIAL),
        "llama",
    ),
    "declared plain and named": (
        BYTES,
        FAST | {"pad_token": "<x>"} | declared(token(18, "<x>"), token(19, "<y>")),
        "llama",
    ),
    "declared briefly": (
        SPM,
        FAST | {"added_tokens_decoder": {"17": {"content": "<x>"}}},
        "llama",
    ),
    "declared with another id": (SPM, FAST | declared(token(99, "c", rstrip=True), X), "llama"),
    "named and listed plain": (plus(SPM, X), FAST | {"pad_token": "<x>"}, "llama"),
}


def read(tokenizer: dict[str, Any], config: dict[str, Any], model_type: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", config),
            ("config.json", {"model_type": model_type}),
        ):
            (Path(folder) / name).write_text(json.dumps(content), encoding="utf-8")
        auto = AutoTokenizer.from_pretrained(folder)
    ids = auto(TEXT).input_ids
    return {
        "ids": ids,
        "plain_ids": auto(TEXT, add_special_tokens=False).input_ids,
        "decoded": auto.decode(ids, skip_special_tokens=True),
    }


def main() -> None:
    rows = []
    for name, (tokenizer, config, model_type) in CASES.items():
        expected = read(copy.deepcopy(tokenizer), dict(config), model_type)
        case = {"name": name, "tokenizer": tokenizer, "config": config, "model_type": model_type}
        rows.append(json.dumps(case | {"expected": expected}))
    lines = ",\n".join(rows)
    path = Path(__file__).with_name("tokenizer.json")
    path.write_text(f'{{"text": {json.dumps(TEXT)}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
