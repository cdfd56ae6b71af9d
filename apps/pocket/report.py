"""Pocket's exact match by format and target, as a Markdown table.

Converts the checkpoint to every format and asks each bundle for the actions of the same held-out
commands. Without --target, on the best target of this machine.

  python -m apps.pocket.report --target cpu:x86_64,avx2 --target ref --examples 500
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import edge
from apps.output import megabytes
from apps.pocket.bundle import CHECKPOINT, CHUNK
from apps.pocket.dataset import held_out_set
from apps.pocket.exact import answer_all, share
from apps.progress import Bar
from converter.convert import convert
from edge.errors import LutraError

FORMATS = ("f32", "w8gc", "w4g64", "w3g64", "w2g64")


def main() -> int:
    """Read the options, print the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=CHECKPOINT,
        metavar="FOLDER",
        help="what training made (default: the one in the repository)",
    )
    parser.add_argument("--target", action="append", metavar="TARGET", help="may be repeated")
    parser.add_argument("--format", action="append", metavar="FORMAT", help="may be repeated")
    parser.add_argument("--examples", type=int, default=500, metavar="N", help="commands (500)")
    args = parser.parse_args()
    targets = args.target or ["auto"]
    print(f"Exact match of {args.examples} held-out commands, measured.\n")
    print("| weights | weights.safetensors | " + " | ".join(targets) + " |")
    print("| --- " * (len(targets) + 2) + "|")
    try:
        for form in args.format or FORMATS:
            print(_row(args.checkpoint, form, targets, args.examples), flush=True)
    except LutraError as error:
        print(f"{error.what}\n  to do: {error.cure}", file=sys.stderr)
        return error.exit_code
    return 0


def _row(checkpoint: Path, form: str, targets: list[str], examples: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "pocket.lutra"
        convert(checkpoint, bundle, weights=form, chunk=CHUNK)
        size = (bundle / "weights.safetensors").stat().st_size
        shares = list(_shares(bundle, targets, examples))
    return "| " + " | ".join([form, megabytes(size), *shares]) + " |"


def _shares(bundle: Path, targets: list[str], examples: int) -> Iterator[str]:
    for target in targets:
        model = edge.load(bundle, target=target)
        bar = Bar()
        bar.start(f"{bundle.name} on {target}", examples, "commands")
        answers = answer_all(model, held_out_set(examples), bar.advance)
        bar.finish()
        yield f"{100 * share(answers):.1f} %"


if __name__ == "__main__":
    sys.exit(main())
