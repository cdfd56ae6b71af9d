"""Tokenizers of GGUF files: the ids of the Hugging Face tokenizer, on awkward text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from converter.sources.gguf import GgufFile
from converter.sources.huggingface import open_checkpoint
from converter.sources.tokenizer import read_tokenizer
from edge.errors import TruncatedSource, UnsupportedMath
from edge.manifest import TokenizerRecord
from edge.tokenizer import Tokenizer
from tests.checkpoints import edit_config, make_checkpoint
from tests.gguf_files import tokenizer_metadata, write_gguf

pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")

AWKWARD = [
    "",
    " ",
    "   ",
    "Once upon a time, there was a little girl.",
    " leading, and trailing ",
    "two  spaces,   three,      six",
    "tabs\tand\nlines\r\n\r\n\n  indented\n\tcode()",
    "It's we'll THEY'RE I'd don'T 'tis",
    "1 22 333 4444 1234567890 3.14 ½ ² Ⅷ ١٢٣",
    "naïve café — “quotes” … n\u0303 e\u0301",
    "日本語のテキスト、中文文本。한국어 ไทย",
    "Ελληνικά Русский עברית العربية हिन्दी",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 e🙂e",
    "\x00\x01\x1b[0m\x7f\u200b\u00a0\ufeff\u2028",
    "\u2581 \u2581\u2581word",
    "<s>a</s> b<unk><0x41><|end|>c <|end|> d",
    "https://example.com/a?b=c&d=%20#e_f-g {}[]()!!!???...",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\u01c4 \u0149 \ufb01 \uff21\uff22 \u212a \u212b",
    "parseHTTPResponse camelCaseWords SHOUTINGthen a/b//c",
]
GPT2 = "gpt-2"
# The regular expressions of published tokenizer.json files.
PATTERNS = {
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt-4o": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
KINDS = [GPT2, "smollm", *PATTERNS]


def read(source: Path) -> tuple[TokenizerRecord, Tokenizer]:
    opened = GgufFile(source) if source.is_file() else open_checkpoint(source)
    record, content = read_tokenizer(opened)
    assert content is not None
    return record, Tokenizer(content)


def assert_same(ours: Tokenizer, theirs: Tokenizer) -> None:
    assert ours.vocabulary == theirs.vocabulary
    for text in AWKWARD:
        for special in (True, False):
            ids = theirs.encode(text, special)
            assert ours.encode(text, special) == ids, text
            assert ours.decode(ids) == theirs.decode(ids), text
            assert ours.decode(ids, False) == theirs.decode(ids, False), text


def byte_level(folder: Path, kind: str) -> Path:
    """A checkpoint with a byte-level BPE tokenizer, trained on the texts above.

    Of no kind, its merges cross all that a regular expression would cut.
    """
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    make_checkpoint(folder, vocab_size=2048)
    edit_config(folder, eos_token_id=None, bos_token_id=None)
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=kind in ("llama-bpe", "tekken")))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in (GPT2, "smollm"))
    steps: list[Any] = [level]
    if kind in PATTERNS:
        pattern = tokenizers.Regex(PATTERNS[kind])
        steps.insert(0, pre_tokenizers.Split(pattern, "isolated"))
    if kind == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if kind == "qwen2":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2048, initial_alphabet=alphabet, special_tokens=["<s>", "</s>", "<|end|>"]
    )
    made.train_from_iterator(AWKWARD * 3, trainer)
    if kind in ("llama-bpe", "tekken"):
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 0)]
        )
    made.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    return folder


def test_sentencepiece(stories: Path, tmp_path: Path) -> None:
    metadata = tokenizer_metadata(stories)
    path = write_gguf(stories, tmp_path / "model.gguf", metadata=metadata)
    (our_record, ours), (their_record, theirs) = read(path), read(stories)
    assert our_record == their_record
    assert_same(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_byte_level(kind: str, tmp_path: Path) -> None:
    source = byte_level(tmp_path / "source", kind)
    metadata = tokenizer_metadata(source, kind) | {"tokenizer.ggml.eot_token_id": 2}
    path = write_gguf(source, tmp_path / "model.gguf", metadata=metadata)
    (our_record, ours), (their_record, theirs) = read(path), read(source)
    assert our_record == their_record
    assert our_record.chat_template == "{{ messages }}"
    assert our_record.eos_ids == (1, 2)
    assert_same(ours, theirs)


def test_the_kinds_differ(tmp_path: Path) -> None:
    """The texts above tell every regular expression from every other."""
    found = set()
    source = byte_level(tmp_path / "source", "")
    for kind in KINDS:
        metadata = tokenizer_metadata(source, kind)
        path = write_gguf(source, tmp_path / f"{kind}.gguf", metadata=metadata)
        found.add(json.dumps([read(path)[1].encode(text, False) for text in AWKWARD]))
    assert len(found) == len(KINDS)


@pytest.mark.parametrize(("begin", "end"), [(True, True), (False, True), (False, False)])
def test_tokens_around_a_text(begin: bool, end: bool, tmp_path: Path) -> None:
    source = byte_level(tmp_path / "source", GPT2)
    metadata = tokenizer_metadata(source, GPT2)
    metadata |= {"tokenizer.ggml.add_bos_token": begin, "tokenizer.ggml.add_eos_token": end}
    _, tokenizer = read(write_gguf(source, tmp_path / "model.gguf", metadata=metadata))
    around = tokenizer.encode("a")
    assert around == [0] * begin + tokenizer.encode("a", special=False) + [1] * end


def test_a_file_without_a_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    path = write_gguf(make_checkpoint(tmp_path / "model"), tmp_path / "model.gguf")
    record, content = read_tokenizer(GgufFile(path))
    assert content is None
    assert record == TokenizerRecord()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pre": "hieroglyphs"}, UnsupportedMath, "pre is 'hieroglyphs', need one of gpt-2"),
        ({"model": "bert"}, UnsupportedMath, "of kind 'bert', need llama or gpt2"),
        ({"merges": ["a b c"]}, TruncatedSource, "merge 'a b c'"),
        ({"merges": ["nosuch token"]}, TruncatedSource, "merge 'nosuch token'"),
        ({"merges": None}, TruncatedSource, "no merges"),
        ({"tokens": None}, TruncatedSource, "no tokens"),
        ({"tokens": ["a", "a"]}, TruncatedSource, "two tokens are the same"),
        ({"tokens": ["a", "b"]}, TruncatedSource, "token_type has another length"),
        ({"bos_token_id": 10**6}, TruncatedSource, "bos_token_id is 1000000 of "),
        ({"add_bos_token": "yes"}, TruncatedSource, "add_bos_token is 'yes'"),
        ({"model": "llama"}, TruncatedSource, "scores have another length"),
    ],
)
def test_what_fits_not_together(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    source = byte_level(tmp_path / "source", GPT2)
    changed = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = tokenizer_metadata(source, GPT2) | changed
    path = write_gguf(source, tmp_path / "model.gguf", metadata=metadata)
    with pytest.raises(error, match=message):
        read_tokenizer(GgufFile(path))
