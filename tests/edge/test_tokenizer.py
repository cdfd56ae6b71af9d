"""The tokenizer on a published sentencepiece file and on a byte-level one made here."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import BadTokens, MissingDependency, SourceNotFound, TruncatedSource, UsageError
from edge.text import TextStream
from edge.tokenizer import Tokenizer

tokenizers = pytest.importorskip("tokenizers")

TEXT = "Once upon a time, café 😀 naïve\n\n  1234"


def make_byte_level() -> bytes:
    """A byte-level tokenizer in the form of the Qwen family's, with chat tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|bos|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 20, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 0)]
    )
    # As files saved after training often have it; neither may touch a prompt.
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=50)
    return str(tokenizer.to_str()).encode()


CONTENT = make_byte_level()
BYTE_LEVEL = Tokenizer(CONTENT)


@pytest.fixture(scope="module")
def sentencepiece(stories: Path) -> Tokenizer:
    return Tokenizer.open(stories / "tokenizer.json")


def test_stories_ids_are_those_of_transformers(sentencepiece: Tokenizer) -> None:
    assert sentencepiece.encode("Once upon a time") == [1, 403, 407, 261, 378]
    spelled = "Once upon</s> a time <s>Hi"
    ids = [403, 407, 2, 410, 261, 378, 410, 1, 320, 417]
    assert sentencepiece.encode(spelled) == [1, *ids]
    assert sentencepiece.encode_chat(spelled) == ids
    assert sentencepiece.decode([1, 403, 407]) == "Once upon"
    assert sentencepiece.decode([1, 403, 407], skip_special=False) == "<s> Once upon"


def test_special_tokens_go_around_a_text_once() -> None:
    assert BYTE_LEVEL.encode("a")[0] == 0
    assert BYTE_LEVEL.encode("a", special=False) == BYTE_LEVEL.encode("a")[1:]
    chat = "<|bos|><|im_start|>user\na<|im_end|>"
    assert BYTE_LEVEL.encode_chat(chat)[:2] == [0, 1]
    assert BYTE_LEVEL.encode_chat(chat)[-1] == 2
    assert BYTE_LEVEL.encode_chat(chat).count(0) == 1


def test_saved_truncation_and_padding_are_off() -> None:
    ids = BYTE_LEVEL.encode(TEXT)
    assert len(ids) > 4
    assert BYTE_LEVEL.decode(ids) == TEXT
    assert BYTE_LEVEL.encode("") == [0]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_comes_back(text: str) -> None:
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode(text)) == text


def test_text_comes_back_from_sentencepiece(sentencepiece: Tokenizer) -> None:
    assert sentencepiece.decode(sentencepiece.encode(TEXT)) == TEXT


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_streamed_text_is_the_text(text: str) -> None:
    ids = BYTE_LEVEL.encode_chat(text)
    stream = TextStream(BYTE_LEVEL.decode, BYTE_LEVEL.encode("prompt"))
    assert "".join([*map(stream.feed, ids), stream.flush()]) == text


def test_streamed_text_keeps_its_first_space(sentencepiece: Tokenizer) -> None:
    prompt = sentencepiece.encode("Once upon")
    whole = sentencepiece.encode("Once upon a time, café 😀")
    assert whole[: len(prompt)] == prompt
    stream = TextStream(sentencepiece.decode, prompt)
    pieces = [*map(stream.feed, whole[len(prompt) :]), stream.flush()]
    assert "".join(pieces) == " a time, café 😀"
    assert pieces[0] == " a"


def test_ids_without_text_have_none() -> None:
    hello = BYTE_LEVEL.encode("Hello")
    padding = [BYTE_LEVEL.vocabulary, 151_935, 2**32 - 1]
    assert BYTE_LEVEL.decode([*padding, *hello, *padding]) == "Hello"
    assert BYTE_LEVEL.decode([]) == ""
    assert BYTE_LEVEL.decode(padding) == ""


@pytest.mark.parametrize("token", [-1, 2**32])
def test_numbers_that_are_no_ids(token: int) -> None:
    with pytest.raises(BadTokens, match=f"token id {token}"):
        BYTE_LEVEL.decode([1, token])


def test_id_of_a_token() -> None:
    assert BYTE_LEVEL.token_id("<|im_end|>") == 2
    assert BYTE_LEVEL.token_id("no such token") is None


def test_half_a_surrogate_pair() -> None:
    with pytest.raises(UsageError, match="surrogate"):
        BYTE_LEVEL.encode("\ud83d")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        CONTENT[:1000],
        CONTENT[:-1],
        json.dumps(json.loads(CONTENT) | {"model": []}).encode(),
        json.dumps(json.loads(CONTENT) | {"added_tokens": {}}).encode(),
        json.dumps(json.loads(CONTENT) | {"version": "99"}).encode(),
    ],
)
def test_what_is_no_tokenizer(content: bytes) -> None:
    with pytest.raises(TruncatedSource, match=f"model/tokenizer.json: {len(content)} bytes"):
        Tokenizer(content, Path("model/tokenizer.json"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"no-such\.json"):
        Tokenizer.open(tmp_path / "no-such.json")


def test_needs_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependency, match="pip install tokenizers"):
        Tokenizer(CONTENT)
