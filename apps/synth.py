"""Make a checkpoint of random weights in the Hugging Face layout: any published shape, no download.

It says nothing, but converts, runs and weighs what the real one does. The same seed gives the same
weights everywhere.

examples:
  lutra synth tiny ./tiny
  lutra synth qwen2.5-0.5b ./qwen --seed 1
  lutra synth ./config.json ./model --dtype f32
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from apps.output import print_json
from apps.progress import Bar
from converter.presets import PRESETS
from converter.synth import DTYPES, synthesize
from edge.errors import SourceNotFound, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="PRESET|CONFIG", help=f"a config.json, or one of {', '.join(PRESETS)}"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other weights (0)")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES, help="type of weights (bf16)")


def run(args: argparse.Namespace) -> int:
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed}", "use 0 or more")
    config = read_config(args.source)
    began = time.monotonic()
    bar = Bar(quiet=args.quiet)
    parameters = synthesize(config, args.out, seed=args.seed, dtype=args.dtype, watcher=bar)
    bar.finish()
    seconds = time.monotonic() - began
    if not args.quiet:
        print(f"wrote {args.out}: {parameters:,} weights in {seconds:.1f} s (measured)")
    if args.json:
        print_json({"out": str(args.out), "parameters": parameters, "seconds": seconds})
    return 0


def read_config(source: str) -> dict[str, Any]:
    """The config of a preset or a file. Raises SourceNotFound."""
    if source in PRESETS:
        return PRESETS[source]
    path = Path(source)
    if not path.is_file():
        raise SourceNotFound(
            f"{source}: no such file and no such preset",
            f"give a config.json, or one of {', '.join(PRESETS)}",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceNotFound(f"{source}: not JSON ({error})", "give a config.json") from error
    if not isinstance(config, dict):
        raise SourceNotFound(f"{source}: not an object", "give a config.json")
    return config
