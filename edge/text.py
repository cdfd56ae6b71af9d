"""Text from a stream of tokens: only what is certain, and nothing from a stop string on.

A token is not a piece of text. It may hold half a character, and what it decodes to may depend on
the tokens before it: sentencepiece tokenizers drop the space at the start of whatever they decode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge.errors import UsageError

# What decoders put where bytes are no character, or not yet one.
REPLACEMENT = "\ufffd"

# A character has 4 bytes at most, so this many tokens may wait for the rest of theirs.
_UNFINISHED_TOKENS = 3

# Tokens of the prompt that are decoded together with the first new ones. One that has text would
# do; the others are there because control tokens have none.
_CONTEXT_TOKENS = 16

# Most tokens decoded at a time. Every finished character moves the window on, so only bytes that
# become no character, and tokens without text, can fill it.
_WINDOW_TOKENS = 64


class TextStream:
    """Decodes tokens one at a time.

    `decode` turns token ids into text, U+FFFD where bytes are no character. `context` is the prompt
    that the tokens continue: with it, the first token keeps its space. The pieces together are what
    decode makes of context and tokens, less what it makes of the context. Where the tokens' bytes
    are not UTF-8, the number of U+FFFD may differ. A token costs two calls of decode, on at most
    64 ids each.
    """

    def __init__(self, decode: Callable[[list[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window: list[int] = []  # tokens decoded together
        self._done = 0  # how many of them have all their text out
        self._emitted = 0  # how many characters of the window's text are out
        self._restart(*self._context(context))

    def feed(self, token: int) -> str:
        """The text that is certain with this token and was not before; often none."""
        self._window.append(token)
        text = self._decode(self._window)
        certain = text.rstrip(REPLACEMENT)
        # Shorter where bytes that came out as U+FFFD each are characters after all.
        self._emitted = min(self._emitted, len(text))
        piece = certain[self._emitted :]
        self._emitted = max(self._emitted, len(certain))
        if certain == text:
            self._move_on()
        elif len(self._window) >= _WINDOW_TOKENS:
            piece += self._give_up()
        return piece

    def flush(self) -> str:
        """What is still held back, at the end of the tokens: half a character as U+FFFD."""
        piece = self._decode(self._window)[self._emitted :]
        self._emitted += len(piece)
        self._move_on()
        return piece

    def _move_on(self) -> None:
        """Let the tokens just finished be the context of the next, once they have text."""
        context, text = self._context(self._window[self._done :])
        if text or len(self._window) >= _WINDOW_TOKENS:
            self._restart(context, text)

    def _give_up(self) -> str:
        """Empty a full window, but for tokens that may be the start of a character."""
        finished, unfinished = (
            self._window[:-_UNFINISHED_TOKENS],
            self._window[-_UNFINISHED_TOKENS:],
        )
        piece = self._decode(finished)[self._emitted :]
        self._restart(*self._context(finished))
        self._window += unfinished
        return piece

    def _restart(self, context: list[int], text: str) -> None:
        self._window = context
        self._done = len(context)
        self._emitted = len(text)

    def _context(self, tokens: Sequence[int]) -> tuple[list[int], str]:
        """The last of `tokens`, from the start of a character on if there is one; their text."""
        last = list(tokens[-_CONTEXT_TOKENS:])
        for skipped in range(_UNFINISHED_TOKENS + 1):
            text = self._decode(last[skipped:])
            if not text.startswith(REPLACEMENT):
                return last[skipped:], text
        return last, self._decode(last)


class StopStrings:
    """Ends a text at the first stop string to be complete; of two that end together, the longer.

    Text that may be the beginning of a stop string is held back until that is decided. How the text
    is cut into pieces makes no difference. Raises UsageError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise UsageError(f"stop strings {stops!r}", "give a list of strings, not one string")
        if not all(stops):
            raise UsageError("an empty stop string, which would end every text", "leave it out")
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._matched: str | None = None

    def feed(self, piece: str) -> tuple[str, str | None]:
        """The text that is safe to show, and the stop string that ended it, or None.

        After a stop string there is no more text.
        """
        if self._matched is not None:
            return "", self._matched
        text = self._held + piece
        if match := self._first_match(text):
            start, self._matched = match
            self._held = ""
            return text[:start], self._matched
        safe = len(text) - self._doubtful(text)
        self._held = text[safe:]
        return text[:safe], None

    def flush(self) -> str:
        """What is still held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """Where the first stop string to be complete starts, and which it is."""
        found = [(text.find(stop), stop) for stop in self._stops]
        matches = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
        return min(matches)[1:] if matches else None

    def _doubtful(self, text: str) -> int:
        """Characters at the end of `text` that may be the beginning of a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
