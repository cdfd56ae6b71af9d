"""Text to token ids and back, by a checkpoint's tokenizer.json.

The file alone decides: which special tokens go around a text, which are parsed in it, how spaces
are treated. What other files of a checkpoint say about that, the converter has written into it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import BadTokens, MissingDependency, SourceNotFound, TruncatedSource, UsageError

if TYPE_CHECKING:
    import tokenizers

FILE_NAME = "tokenizer.json"


class Tokenizer:
    """A tokenizer made from the bytes of a tokenizer.json; `name` is the file's, for errors.

    Raises MissingDependency without the tokenizers package, TruncatedSource for bytes that are no
    tokenizer.
    """

    def __init__(self, content: bytes, name: str | Path = FILE_NAME) -> None:
        self._tokenizer = _parse(content, name)
        # Batching settings that some files were saved with; a prompt is never cut or padded.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @staticmethod
    def open(path: str | Path) -> Tokenizer:
        """Read a tokenizer.json. Raises what the class does, and SourceNotFound."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise SourceNotFound(
                f"{path}: cannot be read ({error.strerror})", "give the path of a tokenizer.json"
            ) from error
        return Tokenizer(content, path)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are. A model's vocabulary is often padded and larger."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text. Special tokens spelled out in it are parsed as such.

        `special`: put the special tokens around it that the model expects, such as a beginning of
        sequence. Raises UsageError for text that is not Unicode.
        """
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=special).ids)
        except TypeError as error:
            raise UsageError(
                f"text with half a surrogate pair: {text!r:.80}", "pass text that is valid Unicode"
            ) from error

    def encode_chat(self, text: str) -> list[int]:
        """Token ids of a rendered chat template: it spells its special tokens, none are added."""
        return self.encode(text, special=False)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of token ids. Ids without text, such as a vocabulary's padding, give none.

        `skip_special` leaves out special tokens. Raises BadTokens for what cannot be an id.
        """
        numbers = [int(token) for token in ids]
        try:
            return self._tokenizer.decode(numbers, skip_special_tokens=skip_special)
        except OverflowError as error:
            wrong = next(n for n in numbers if not 0 <= n < 1 << 32)
            raise BadTokens(f"token id {wrong}, need 0 or more", "check the ids") from error

    def token_id(self, text: str) -> int | None:
        """The id of the token spelled `text` in the vocabulary, or None."""
        return self._tokenizer.token_to_id(text)


def _parse(content: bytes, name: str | Path) -> tokenizers.Tokenizer:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingDependency(
            f"{name} needs the tokenizers package", "pip install tokenizers"
        ) from error
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except ValueError as error:  # all that the package raises for a malformed file
        detail = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")
        raise TruncatedSource(
            f"{name}: {len(content)} bytes that are no tokenizer ({detail})",
            "copy or download the file again; a file in a newer form needs "
            "`pip install -U tokenizers`",
        ) from error
