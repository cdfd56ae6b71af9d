"""Incremental text: what streams out must be what decoding at once gives."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import UsageError
from edge.text import StopStrings, TextStream

# Two kinds of decoder, as published tokenizers have them. Tokens below 256 are bytes.
CONTROL = 256  # a special token, without text
WORDS = {300: " the", 301: " cat", 302: "s", 303: " ", 304: " né", 305: "\ufffd"}


def byte_level(ids: list[int]) -> str:
    """GPT-2's kind: all tokens are bytes, decoded together."""
    parts = [WORDS[i].encode() if i in WORDS else bytes([i]) for i in ids if i != CONTROL]
    return b"".join(parts).decode(errors="replace")


def sentencepiece(ids: list[int]) -> str:
    """Llama 2's kind: runs of bytes are decoded as one, and the first space is dropped."""
    text, run = "", b""
    for i in [i for i in ids if i != CONTROL] + [None]:
        if i is not None and i < 256:
            run += bytes([i])
            continue
        text += decode_run(run)
        run = b""
        text += WORDS[i] if i is not None else ""
    return text.removeprefix(" ")


def decode_run(run: bytes) -> str:
    try:
        return run.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(run)


DECODERS = pytest.mark.parametrize("decode", [byte_level, sentencepiece])

WORD_IDS = st.sampled_from([CONTROL, *(i for i in WORDS if WORDS[i] != "\ufffd")]).map(
    lambda i: [i]
)
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")
TOKENS = st.lists(WORD_IDS | CHARACTERS.map(lambda c: list(c.encode())), max_size=40).map(
    lambda groups: [token for group in groups for token in group]
)


def stream(decode: Callable[[list[int]], str], tokens: list[int], context: list[int]) -> list[str]:
    text = TextStream(decode, context)
    return [*(text.feed(token) for token in tokens), text.flush()]


@DECODERS
@given(tokens=TOKENS)
def test_pieces_are_the_text(decode: Callable[[list[int]], str], tokens: list[int]) -> None:
    assert "".join(stream(decode, tokens, [])) == decode(tokens)


@DECODERS
@given(context=TOKENS, tokens=TOKENS)
def test_pieces_continue_the_context(
    decode: Callable[[list[int]], str], context: list[int], tokens: list[int]
) -> None:
    # A context has text near its end: without, nothing tells whether a space is the first.
    context = [*context, 302]
    assert decode(context) + "".join(stream(decode, tokens, context)) == decode(context + tokens)


@DECODERS
@given(tokens=TOKENS)
def test_no_piece_has_half_a_character(
    decode: Callable[[list[int]], str], tokens: list[int]
) -> None:
    assert not any("\ufffd" in piece for piece in stream(decode, tokens, []))


def test_the_space_behind_the_prompt_stays() -> None:
    assert stream(sentencepiece, [301, 302], [CONTROL, 300]) == [" cat", "s", ""]
    assert stream(sentencepiece, [301, 302], [300, CONTROL]) == [" cat", "s", ""]
    assert stream(sentencepiece, [301, 302], []) == ["cat", "s", ""]


def test_a_character_comes_with_its_last_token() -> None:
    smile = list("😀".encode())
    assert stream(byte_level, [104, *smile, 105], []) == ["h", "", "", "", "😀", "i", ""]
    assert stream(sentencepiece, [104, *smile, 105], []) == ["h", "", "", "", "😀", "i", ""]


def test_text_before_half_a_character_does_not_wait() -> None:
    assert byte_level([304, 0xC3]) == " né\ufffd"
    mixed = {400: b"ab\xf0\x9f", 401: b"\x98\x80c"}
    stream = TextStream(lambda ids: b"".join(mixed[i] for i in ids).decode(errors="replace"))
    assert [stream.feed(400), stream.feed(401)] == ["ab", "😀c"]


@DECODERS
def test_half_a_character_at_the_end(decode: Callable[[list[int]], str]) -> None:
    text = TextStream(decode)
    assert [text.feed(104), text.feed(0xF0), text.feed(0x9F)] == ["h", "", ""]
    assert text.flush().strip("\ufffd") == ""
    assert text.flush() == ""
    assert [text.feed(token) for token in (303, 300)] == [" ", " the"]


@pytest.mark.parametrize("count", range(50, 70))
def test_a_character_behind_many_broken_bytes(count: int) -> None:
    tokens = [0x80] * count + list("😀!".encode())
    assert "".join(stream(byte_level, tokens, [])) == byte_level(tokens)


@pytest.mark.parametrize("count", range(40, 50))
def test_words_behind_many_broken_bytes_stay_whole(count: int) -> None:
    """The window fills up within a run of bytes that is text when it is cut there."""
    good = list("好".encode())
    run = [0x80] * count + good * 8 + [0xE4] * 6 + good * 18
    tokens = [*run, CONTROL, CONTROL, CONTROL, 300, 301]
    assert "".join(stream(sentencepiece, tokens, [])).endswith(" the cat")


@pytest.mark.parametrize("skipped", range(4))
def test_a_context_of_bytes_need_not_start_with_a_character(skipped: int) -> None:
    context = list("好".encode() * 9)[skipped:]
    assert stream(sentencepiece, list("é".encode()), [300, *context]) == ["", "é", ""]


@given(st.lists(st.sampled_from([0x80, 0xC3, 0xE4, 0xF0, 0x9F, 0x41, 305]), max_size=300))
def test_broken_bytes_are_as_if_decoded_at_once(tokens: list[int]) -> None:
    assert "".join(stream(byte_level, tokens, [])) == byte_level(tokens)


@DECODERS
@given(st.lists(st.integers(0, 255) | st.sampled_from([CONTROL, *WORDS]), max_size=300))
def test_any_tokens_give_all_their_readable_text(
    decode: Callable[[list[int]], str], tokens: list[int]
) -> None:
    pieces = "".join(stream(decode, tokens, tokens[:3]))
    words = [token for token in tokens if token in (300, 301)]
    assert pieces.count("the") + pieces.count("cat") >= len(words)  # bytes may spell some


@DECODERS
@pytest.mark.parametrize("token", [104, 0x80, 0xF0, CONTROL, 300])
def test_work_per_token_is_bounded(decode: Callable[[list[int]], str], token: int) -> None:
    sizes: list[int] = []

    def counted(ids: list[int]) -> str:
        sizes.append(len(ids))
        return decode(ids)

    text = TextStream(counted, [token] * 1000)
    sizes.clear()
    for _ in range(1000):
        text.feed(token)
    assert max(sizes) <= 64
    assert len(sizes) <= 2.2 * 1000


# Stop strings.

TEXT = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def chunked(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Text up to the stop string that is complete first; of two, the longer."""
    for end in range(len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            longest = max(matches, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(TEXT, STOPS, st.lists(st.integers(0, 30), max_size=10))
def test_any_chunking_gives_the_text_up_to_the_first_stop(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    stream = StopStrings(stops)
    results = [stream.feed(piece) for piece in chunked(text, cuts)]
    safe = "".join(piece for piece, _ in results) + stream.flush()
    assert (safe, results[-1][1]) == reference(text, stops)


@given(TEXT, STOPS, st.lists(st.integers(0, 30), max_size=10))
def test_only_what_may_become_a_stop_is_held_back(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    stream, fed, shown = StopStrings(stops), "", ""
    for piece in chunked(text, cuts):
        safe, matched = stream.feed(piece)
        fed, shown = fed + piece, shown + safe
        if matched is not None:
            break
        held = fed.removeprefix(shown)
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_stop_strings_by_example() -> None:
    stops = StopStrings(["</s>", "\nUser:"])
    assert [stops.feed(piece) for piece in ("Hi", " <", "b>\nU", "ser", ": next", " more")] == [
        ("Hi", None),
        (" ", None),
        ("<b>", None),
        ("", None),
        ("", "\nUser:"),
        ("", "\nUser:"),
    ]
    assert stops.flush() == ""


def test_what_was_held_back_comes_at_the_end() -> None:
    stops = StopStrings(["STOP"])
    assert stops.feed("a STO") == ("a ", None)
    assert stops.flush() == "STO"
    assert stops.flush() == ""


@pytest.mark.parametrize("stops", [[""], ["a", ""], "abc"])
def test_stop_strings_that_make_no_sense(stops: list[str]) -> None:
    with pytest.raises(UsageError):
        StopStrings(stops)
