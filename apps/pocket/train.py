"""Train pocket from nothing: its tokenizer, its weights, a checkpoint in the Hugging Face layout.

All text is generated, and the seed fixes it; the weights depend on the machine's arithmetic too. A
training that was interrupted goes on where it last saved. Then convert what it made:

  python -m apps.pocket.train build/pocket
  lutra convert build/pocket build/pocket.lutra
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from edge.errors import LutraError, MissingDependency

_NEEDED = ("torch", "safetensors", "tokenizers")


def main() -> int:
    """Read the options and train; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, metavar="N", help="fewer for a try")
    parser.add_argument("--batch", type=int, metavar="N", help="examples a step")
    parser.add_argument("--seed", type=int, metavar="N", help="other text, another start")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    args = parser.parse_args()
    try:
        _train(args)
    except LutraError as error:
        print(f"{error.what}\n  to do: {error.cure}", file=sys.stderr)
        return error.exit_code
    return 0


def _train(args: argparse.Namespace) -> None:
    for module in _NEEDED:
        if importlib.util.find_spec(module) is None:
            raise MissingDependency(
                f"training pocket needs the {module} package", 'pip install "lutra[train]"'
            )
    import torch

    from apps.pocket.training import Recipe, train

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    names = ("steps", "batch", "seed")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    train(args.out, Recipe(**given), "cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    sys.exit(main())
