"""`lutra`: finds the verb, runs it, and turns errors into one clear message and an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from apps.output import print_json
from edge.errors import LutraError
from edge.version import VERSION

# Verb -> what it does. Each is a module here with `add_arguments(parser)` and `run(args)`.
VERBS = {
    "convert": "turn a Hugging Face checkpoint into a bundle",
    "run": "continue a prompt",
    "chat": "talk with a model",
    "inspect": "show what is in a bundle",
    "verify": "check every byte of a bundle",
    "eval": "measure perplexity, and what quantization costs",
    "doctor": "try every target on this machine",
    "synth": "make a random-weight checkpoint of a published shape",
}

INTERNAL_ERROR = 70
INTERRUPTED = 130

_EPILOG = """start here:
  lutra convert SRC OUT.lutra      SRC is a folder, or a hub name such as org/model
  lutra run OUT.lutra -p "Once upon a time"
  lutra VERB --help                options and examples of one verb"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in words if not word.startswith("-")), "")
    module = importlib.import_module(f"apps.{verb}") if verb in VERBS else None
    args = make_parser(verb, module).parse_args(words)
    if module is None:
        make_parser("", None).print_help()
        return 2
    return _guarded(module, args)


def make_parser(verb: str, module: ModuleType | None) -> argparse.ArgumentParser:
    """The parser of all verbs; only the one asked for is imported and has its options."""
    parser = argparse.ArgumentParser(
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


def _guarded(module: ModuleType, args: argparse.Namespace) -> int:
    try:
        code: int = module.run(args)
        sys.stdout.flush()
        return code
    except LutraError as error:
        return _report(args, type(error).__name__, error.what, error.cure, error.exit_code)
    except KeyboardInterrupt:
        return _report(args, "Interrupted", "interrupted", "", INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe has gone; a last flush would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        what = f"internal error: {type(error).__name__}: {error}"
        cure = "this is a bug in lutra: report it with what --debug shows"
        return _report(args, "InternalError", what, cure, INTERNAL_ERROR)


def _report(args: argparse.Namespace, kind: str, what: str, cure: str, code: int) -> int:
    if args.debug:
        traceback.print_exc()
    print(f"lutra {args.verb}: {what}", file=sys.stderr)
    if cure:
        print(f"  to do: {cure}", file=sys.stderr)
    if args.json:
        print_json({"error": {"kind": kind, "exit_code": code, "what": what, "cure": cure}})
    return code


if __name__ == "__main__":
    sys.exit(main())
