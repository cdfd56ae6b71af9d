"""`lutra`: finds the verb, runs it, and turns errors into one clear message and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn

from apps.output import outlive_readers, print_json
from edge.errors import LutraError, UsageError
from edge.tool import INTERRUPTED
from edge.version import VERSION

# Verb -> what it does. Each is a module here with `add_arguments(parser)` and `run(args)`.
VERBS = {
    "convert": "turn a Hugging Face checkpoint into a bundle",
    "run": "continue a prompt",
    "chat": "talk with a model",
    "inspect": "show what is in a bundle",
    "verify": "check every byte of a bundle",
    "eval": "measure perplexity, and what quantization costs",
    "bench": "measure speed against the machine's ceilings and a peer",
    "doctor": "try every target on this machine",
    "kernels": "show every kernel's inner loop and modelled cycles",
    "plan": "model speed and energy on a phone's SoC",
    "synth": "make a random-weight checkpoint of a published shape",
}

# Those whose work is not their output: they go on when nobody reads it any more.
WORKING = ("convert", "verify", "eval", "synth")

INTERNAL_ERROR = 70

_EPILOG = """start here:
  lutra convert SRC OUT.lutra      SRC is a folder, or a hub name such as org/model
  lutra run OUT.lutra -p "Once upon a time"
  lutra VERB --help                options and examples of one verb"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words, verb = [], ""
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        verb = next((word for word in words if not word.startswith("-")), "")
        _prepare_streams()
        with (
            outlive_readers() if verb in WORKING else contextlib.nullcontext(),
            _warnings_as_notes(quiet="--quiet" in words),
        ):
            code = _run(verb, words)
        sys.stdout.flush()
        return code
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and verb not in WORKING:
            _discard_output()  # the reader has gone; a last flush would fail again
            return 0
        failure = _failure(error)
        return _report(failure, f"lutra {verb}" if verb in VERBS else "lutra", words)


def _run(verb: str, words: list[str]) -> int:
    module = importlib.import_module(f"apps.{verb}") if verb in VERBS else None
    try:
        args = make_parser(verb, module).parse_args(words)
    finally:
        sys.stdout.flush()  # --help ends here, and its reader may be gone
    if module is None:
        make_parser("", None).print_help()
        return 2
    code: int = module.run(args)
    return code


@contextlib.contextmanager
def _warnings_as_notes(*, quiet: bool) -> Iterator[None]:
    """A warning is a line on standard error, without the place in the code that gave it.

    NumPy's of overflow and NaN say nothing that a user can act on; what comes of them is checked.
    """

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Warning if quiet else RuntimeWarning)
        warnings.formatwarning = lambda message, *_: f"note: {message}\n"
        yield


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours, so that --json holds for them too.

    Options are spelled out: an abbreviation would change its meaning with the next new option.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def parse_known_args(self, *args: Any, **settings: Any) -> tuple[Any, list[str]]:
        """Refuse what is not known here: a verb's parser would leave it to the one above it."""
        parsed, unknown = super().parse_known_args(*args, **settings)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Print the usage. Raises UsageError."""
        self.print_usage(sys.stderr)
        raise UsageError(message, f"see {self.prog} --help")


def make_parser(verb: str, module: ModuleType | None) -> argparse.ArgumentParser:
    """The parser of all verbs; only the one asked for is imported and has its options."""
    parser = Parser(
        prog="lutra",
        description="Language models on a phone's NPU and CPU.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lutra {VERSION}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name, text in VERBS.items():
        description = module.__doc__ if module is not None and name == verb else text
        child = verbs.add_parser(
            name,
            help=text,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if module is not None and name == verb:
            module.add_arguments(child)
            child.add_argument(
                "--json", action="store_true", help="print one JSON object as the last line"
            )
            child.add_argument("--quiet", action="store_true", help="no progress, no notes")
            child.add_argument(
                "--debug", action="store_true", help="show a traceback with an error"
            )
    return parser


@dataclass(frozen=True)
class Failure:
    """What is told of an error; `kind` is the name of its class."""

    kind: str
    exit_code: int
    what: str
    cure: str


def _failure(error: BaseException) -> Failure:
    match error:
        case LutraError():
            return Failure(type(error).__name__, error.exit_code, error.what, error.cure)
        case KeyboardInterrupt():
            return Failure("Interrupted", INTERRUPTED, "interrupted", "")
        case MemoryError():
            cure = "close other programs, or use a smaller model, format or --context"
            return _failure(LutraError(f"out of memory ({error})", cure))
        case OSError():
            place = "the system says" if error.filename is None else os.fspath(error.filename)
            cure = "check the path, its permissions, and the room on the disk"
            return _failure(LutraError(f"{place}: {error.strerror or error}", cure))
    what = f"internal error: {type(error).__name__}: {error}"
    cure = "this is a bug in lutra: report it with what --debug shows"
    return Failure("InternalError", INTERNAL_ERROR, what, cure)


def _report(failure: Failure, program: str, words: list[str]) -> int:
    try:
        if "--debug" in words:
            traceback.print_exc()
        print(f"{program}: {failure.what}", file=sys.stderr)
        if failure.cure:
            print(f"  to do: {failure.cure}", file=sys.stderr)
        if "--json" in words:
            print_json({"error": vars(failure)})
        sys.stdout.flush()
    except OSError:  # nobody can be told; the exit code still says it
        _discard_output()
    return failure.exit_code


def _prepare_streams() -> None:
    """Make the standard streams safe to use: closed ones are empty, no character is unprintable."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="strict")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Let what is still to be flushed to standard output go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
