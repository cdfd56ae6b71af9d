"""The rows of docs/benchmarks.md for the machine at hand, from nothing but a network.

    python -m apps.bench.rows FOLDER [--rows qwen1.5-1.8b:w4g64:Q4_0,...] [--target TARGET]

Builds the peer for the target's instruction sets, makes checkpoints of published shapes with random
weights, converts them, and runs `lutra bench` against the peer for each row: our format and the
peer's. What FOLDER has already is used again, so that an interrupted run goes on. Prints a table
for docs/benchmarks.md, all of it measured; the rows' JSON stays in FOLDER. The rows that are made
unless told take some 14 GB of disk. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import LutraError, UsageError
from edge.target import Target, this_machine
from edge.tool import finish

ROWS = ",".join(
    f"{shape}:{pair}"
    for shape in ("qwen1.5-1.8b", "qwen2.5-0.5b")
    for pair in ("w4g64:Q4_0", "w2g64:TQ2_0", "w2g64:Q2_K")
)

TITLES = ("shape", "ours", "peer", "prefill tok/s", "", "of the unit", "decode tok/s", "", "reads")


@dataclass(frozen=True)
class Row:
    """A shape, our weights' format and the peer's."""

    shape: str
    ours: str
    theirs: str

    @staticmethod
    def parse(text: str) -> Row:
        """From SHAPE:OURS:PEER. Raises UsageError."""
        parts = text.split(":")
        if len(parts) != 3 or not all(parts):
            raise UsageError(f"row {text!r}", "use SHAPE:OURS:PEER, as qwen1.5-1.8b:w4g64:Q4_0")
        return Row(*parts)

    def result(self, folder: Path) -> Path:
        return folder / f"{self.shape}-{self.ours}-{self.theirs}.json"

    def steps(self, folder: Path, target: Target) -> Iterator[tuple[Path, list[str]]]:
        """What makes the row: a file or folder each, and the words for Python that make it."""
        checkpoint, peer = folder / self.shape, folder / f"peer-{'-'.join(target.features)}"
        bundle = folder / f"{self.shape}-{self.ours}.lutra"
        lutra = ["-m", "apps.cli"]
        yield peer, ["-m", "apps.bench.build_peer", str(peer), "--target", str(target)]
        yield checkpoint, [*lutra, "synth", self.shape, str(checkpoint)]
        made = [str(checkpoint), str(bundle), "--weights", self.ours, "--context", "1024"]
        yield bundle, [*lutra, "convert", *made]
        options = {
            "--target": target,
            "--checkpoint": checkpoint,
            "--peer": "llama.cpp",
            "--peer-format": self.theirs,
            "--peer-file": folder / f"{self.shape}-{self.theirs}.gguf",
            "--peer-python": peer / "bin" / "python",
        }
        words = [str(word) for option in options.items() for word in option]
        yield self.result(folder), [*lutra, "bench", str(bundle), *words, "--json"]


def measure(row: Row, folder: Path, target: Target) -> dict[str, Any]:
    """Make what is missing, and measure. Raises LutraError where a step fails, which says why."""
    for path, words in row.steps(folder, target):
        if path.exists():
            continue
        print(f"{path.name} ...", file=sys.stderr, flush=True)
        done = subprocess.run(  # noqa: S603
            [sys.executable, *words], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise LutraError(f"{path}: {' '.join(words)} ended with {done.returncode}")
        if path == row.result(folder):
            path.write_text(done.stdout.strip().splitlines()[-1], encoding="utf-8")
    values: dict[str, Any] = json.loads(row.result(folder).read_text(encoding="utf-8"))
    return values


def line(row: Row, values: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table: both sides, their ratio, and our share of what bounds each phase."""
    peer, ratios = values["peer"], values["ratios"]
    shares = values["prefill_ceiling_shares"]
    unit = "amx_bf16" if "amx_bf16" in shares else next(iter(shares), None)
    bandwidth, reads = values["read_bandwidth_gb_s"], values["decode_ceiling_share"]
    return (
        *(row.shape, row.ours, row.theirs),
        f"{values['prefill_tok_s']:.0f} / {peer['prefill_tok_s']:.0f}",
        f"{ratios['prefill_tok_s']:.2f} x",
        "-" if unit is None else f"{100 * shares[unit]:.0f} % of {unit}",
        f"{values['decode_tok_s']:.1f} / {peer['decode_tok_s']:.1f}",
        f"{ratios['decode_tok_s']:.2f} x",
        "-" if reads is None else f"{100 * reads:.0f} % of {bandwidth:.0f} GB/s",
    )


def table(lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    rows = [TITLES, ["---"] * len(TITLES), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def main(words: Sequence[str]) -> int:
    """The command line. Raises LutraError."""
    parser = argparse.ArgumentParser(
        prog="rows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for all that is made")
    parser.add_argument(
        "--rows", default=ROWS, metavar="LIST", help=f"SHAPE:OURS:PEER,... ({ROWS})"
    )
    parser.add_argument("--target", help="instruction sets of both (default: all of this machine)")
    args = parser.parse_args(words)
    target = this_machine().target() if args.target is None else Target.parse(args.target)
    rows = [Row.parse(text) for text in args.rows.split(",")]
    args.folder.mkdir(parents=True, exist_ok=True)
    lines = [line(row, measure(row, args.folder, target)) for row in rows]
    print(table(lines))
    print(f"\n{target}; 256 + 64 tokens, medians of 5 rounds in turns; all measured")
    return 0


if __name__ == "__main__":
    finish("rows", lambda: main(sys.argv[1:]))
