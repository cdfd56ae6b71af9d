"""Check every byte of a bundle against the SHA-256 that was taken when it was written.

example:
  lutra verify model.lutra
"""

from __future__ import annotations

import argparse

from apps.inspect import bundle_bytes
from apps.output import megabytes, print_json
from apps.progress import Bar
from edge.bundle import Bundle, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="folder that lutra convert made")


def run(args: argparse.Namespace) -> int:
    bundle = Bundle.open(args.bundle)
    size = bundle_bytes(bundle)
    bar = Bar(quiet=args.quiet)
    bar.start("verify", size, "B")
    verify(bundle, bar.advance)
    bar.finish()
    if args.json:
        print_json({"ok": True, "files": len(bundle.manifest.files), "bytes": size})
    else:
        print(
            f"{args.bundle}: {len(bundle.manifest.files)} files, {megabytes(size)}: all as written"
        )
    return 0
