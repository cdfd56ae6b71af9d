"""Pocket's tokenizer: round trips, copies that keep their tokens, pieces that can be streamed."""

from __future__ import annotations

import itertools

import pytest

from apps.pocket.dataset import examples
from apps.pocket.tokenizer import ANSWER, BOS, CHAT_TEMPLATE, EOS, render, train_tokenizer
from edge.template import ChatTemplate, Message
from edge.text import TextStream
from edge.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    drawn = itertools.islice(examples(1, "train"), 3000)
    texts = [text for example in drawn for text in (f" {example.command}", example.action)]
    return Tokenizer(train_tokenizer(texts, 900).to_str().encode())


def test_actions_come_back_whole_and_piece_by_piece(tokenizer: Tokenizer) -> None:
    for example in itertools.islice(examples(2, "test"), 300):
        prompt = tokenizer.encode_chat(render(example.command))
        ids = tokenizer.encode_chat(example.action)
        assert tokenizer.decode(ids) == example.action
        stream = TextStream(tokenizer.decode, prompt)
        pieces = "".join(stream.feed(token) for token in ids) + stream.flush()
        assert pieces == example.action


def test_a_copied_word_keeps_its_tokens(tokenizer: Tokenizer) -> None:
    word = tokenizer.encode_chat(" zuvraloth")
    assert len(word) > 1
    for text in (render("call zuvraloth"), '{"action": "call", "to": "zuvraloth"}'):
        ids = tokenizer.encode_chat(text)
        assert any(ids[i : i + len(word)] == word for i in range(len(ids)))


def test_digits_stand_alone_and_keys_are_one_piece(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_chat('{"action": "set_alarm", "time": "06:30"}')
    pieces = [tokenizer.decode([token]) for token in ids]
    assert pieces == ['{"action": "set_alarm"', ', "time": "', "0", "6", ":", "3", "0", '"}']


def test_any_text_goes_through(tokenizer: Tokenizer) -> None:
    text = " naïve 東京 🦦 \t x"
    assert tokenizer.decode(tokenizer.encode_chat(text)) == text


def test_render_is_what_the_template_makes() -> None:
    template = ChatTemplate(CHAT_TEMPLATE, {"bos_token": BOS, "eos_token": EOS})
    messages = [Message("system", "x"), Message("user", "  Wake me at 7 ")]
    assert (
        template.render(messages) == render(messages[-1].content) == f"{BOS} wake me at 7{ANSWER}"
    )


def test_the_same_text_gives_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    texts = [e.command for e in itertools.islice(examples(1, "train"), 300)]
    assert train_tokenizer(texts, 500).to_str() == train_tokenizer(texts, 500).to_str()
