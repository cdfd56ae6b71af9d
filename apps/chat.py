"""Talk with a model.

Without BUNDLE, with pocket, the small model that comes with lutra: it turns commands into actions.
Only what is new is run each turn. Type /reset to forget the conversation, /exit or Ctrl-D to leave;
Ctrl-C stops an answer.

examples:
  lutra chat
  lutra chat model.lutra
  lutra chat model.lutra --system "Answer in one sentence." --temperature 0.7
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys

from apps.options import add_model_options, add_sampling_options, load_model, read_sampling
from apps.output import print_json
from apps.pocket.bundle import NAME, encode_chat
from edge.errors import PromptTooLong
from edge.model import Model, Session
from edge.sampler import Sampling
from edge.template import Message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser, default=NAME)
    parser.add_argument("--system", metavar="TEXT", help="system message")
    add_sampling_options(parser)


class Chat:
    """A conversation: its messages, and the session that remembers what was run."""

    def __init__(self, model: Model, sampling: Sampling, args: argparse.Namespace) -> None:
        self.model = model
        self.sampling = sampling
        self.max_tokens: int = args.max_tokens
        self.stop: list[str] = args.stop
        self.silent: bool = args.json
        self.opening = [Message("system", args.system)] if args.system else []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self.opening)
        self.session: Session = self.model.session()

    def say(self, text: str) -> str:
        """Add the user's message, print and return the answer. Ctrl-C cuts it short.

        Raises PromptTooLong, and forgets the message then.
        """
        asked = [*self.messages, Message("user", text)]
        records = self.model.stream(
            encode_chat(self.model, asked),
            max_tokens=self.max_tokens,
            sampling=self.sampling,
            stop=self.stop,
            session=self.session,
        )
        pieces: list[str] = []
        with contextlib.suppress(KeyboardInterrupt):
            for record in records:
                pieces.append(record.text)
                if not self.silent:
                    print(record.text, end="", flush=True)
        if not self.silent:
            print()
        answer = "".join(pieces)
        self.messages = [*asked, Message("assistant", answer)]
        return answer


def run(args: argparse.Namespace) -> int:
    model = load_model(args)
    chat = Chat(model, read_sampling(args, model), args)
    encode_chat(model, [*chat.opening, Message("user", "")])  # a bad template shows up now
    if isinstance(sys.stdin, io.TextIOWrapper):  # a stray byte must not end the conversation
        sys.stdin.reconfigure(errors="replace")
    if sys.stdin.isatty() and not args.quiet:
        print("/reset forgets the conversation, /exit leaves", file=sys.stderr)
    while (line := _read_line()) is not None:
        if line in ("/exit", "/quit"):
            break
        if line == "/reset":
            chat.reset()
        elif line:
            _answer(chat, line)
    if args.json:
        messages = [vars(message) for message in chat.messages]
        print_json({"messages": messages, "target": model.place, "note": model.note})
    return 0


def _answer(chat: Chat, line: str) -> None:
    try:
        chat.say(line)
    except PromptTooLong as error:
        print(f"the conversation is too long: {error.what}; /reset starts anew", file=sys.stderr)


def _read_line() -> str | None:
    """A line from the user, or None at the end of input."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.strip() if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() editing and history)
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return None
