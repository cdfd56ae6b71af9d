"""The rows of docs/benchmarks.md for the machine at hand, from nothing but a network.

    python -m apps.bench.rows FOLDER [--rows qwen1.5-1.8b:w4g64:Q4_0,...] [--target TARGET]

Builds the peer for the target's instruction sets, makes checkpoints of published shapes with random
weights, converts them, and runs `lutra bench` against the peer for each row (our format and the
peer's), once with the peer's flash attention as llama.cpp chooses and once without: each is the
faster one somewhere. What FOLDER has already is used again, so that an interrupted run goes on.
Prints a table for docs/benchmarks.md, all of it measured; the rows' JSON stays in FOLDER. The rows
that are made unless told take some 15 GB of disk. Nothing else should run meanwhile.
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

from apps.bench.gguf_file import FORMATS
from converter.presets import PRESETS
from edge.disk import write_text
from edge.errors import LutraError, UsageError
from edge.formats import Format
from edge.target import Target, this_machine
from edge.tool import finish

_PAIRS = ("w4g64:Q4_0", "w2g64:TQ2_0", "w2g64:Q2_K")

ROWS = ",".join(
    [
        *(f"qwen1.5-1.8b:{pair}" for pair in (*_PAIRS, "w2g64:Q4_0")),
        *(f"qwen1.5-1.8b:ternary:{theirs}" for theirs in ("TQ2_0", "Q2_K")),
        *(f"qwen2.5-0.5b:{pair}" for pair in _PAIRS),
    ]
)

# Of the peer; the better one of each phase counts.
FLASH_ATTENTION = ("auto", "off")

TITLES = (
    *("shape", "ours", "peer", "its flash attention"),
    *("prefill tok/s", "", "of the unit", "decode tok/s", "", "reads"),
)


@dataclass(frozen=True)
class Row:
    """A shape, our weights' format and the peer's."""

    shape: str
    ours: str
    theirs: str

    @staticmethod
    def parse(text: str) -> Row:
        """From SHAPE:OURS:PEER. Raises UsageError, or UnknownFormat for one of ours."""
        parts = text.split(":")
        if len(parts) != 3:
            raise UsageError(f"row {text!r}", "use SHAPE:OURS:PEER, as qwen1.5-1.8b:w4g64:Q4_0")
        row = Row(*parts)
        for value, known in ((row.shape, PRESETS), (row.theirs, FORMATS)):
            if value not in known:
                raise UsageError(f"row {text!r}: {value!r}", f"use one of {', '.join(known)}")
        Format.parse(row.ours)
        return row

    def result(self, folder: Path, run: Run) -> Path:
        names = (self.shape, self.ours, self.theirs, run.flash_attention, run.features)
        return folder / f"{'-'.join(names)}.json"

    def steps(self, folder: Path, run: Run) -> Iterator[tuple[Path, list[str]]]:
        """What makes the row: a file or folder each, and the words for Python that make it."""
        checkpoint, peer = folder / self.shape, folder / f"peer-{run.features}"
        bundle = folder / f"{self.shape}-{self.ours}.lutra"
        lutra = ["-m", "apps.cli"]
        yield peer, ["-m", "apps.bench.build_peer", str(peer), "--target", str(run.target)]
        yield checkpoint, [*lutra, "synth", self.shape, str(checkpoint)]
        made = [str(checkpoint), str(bundle), "--weights", self.ours, "--context", "1024"]
        yield bundle, [*lutra, "convert", *made]
        options = {
            "--target": run.target,
            "--checkpoint": checkpoint,
            "--peer": "llama.cpp",
            "--peer-format": self.theirs,
            "--peer-file": folder / f"{self.shape}-{self.theirs}.gguf",
            "--peer-python": peer / "bin" / "python",
            "--peer-flash-attention": run.flash_attention,
        }
        words = [str(word) for option in options.items() for word in option]
        yield self.result(folder, run), [*lutra, "bench", str(bundle), *words, "--json"]


@dataclass(frozen=True)
class Run:
    """How a row is measured: the instruction sets of both sides, the peer's flash attention."""

    target: Target
    flash_attention: str

    @property
    def features(self) -> str:
        """The target's, for the names of files."""
        return "-".join(self.target.features)


def measure(row: Row, folder: Path, run: Run) -> dict[str, Any]:
    """Make what is missing, and measure. Raises LutraError where a step fails, which says why."""
    for path, words in row.steps(folder, run):
        if path.exists():
            continue
        print(f"{path.name} ...", file=sys.stderr, flush=True)
        done = subprocess.run(  # noqa: S603
            [sys.executable, *words], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise LutraError(f"{path}: {' '.join(words)} ended with {done.returncode}")
        if path == row.result(folder, run):
            write_text(path, done.stdout.strip().splitlines()[-1])
    values: dict[str, Any] = json.loads(row.result(folder, run).read_text(encoding="utf-8"))
    return values


def line(row: Row, run: Run, values: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table: both sides, their ratio, and our share of what bounds each phase."""
    peer, ratios = values["peer"], values["ratios"]
    shares = values["prefill_ceiling_shares"]
    unit = "amx_bf16" if "amx_bf16" in shares else next(iter(shares), None)
    bandwidth, reads = values["read_bandwidth_gb_s"], values["decode_ceiling_share"]
    return (
        *(row.shape, row.ours, row.theirs, run.flash_attention),
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
    runs = [(row, Run(target, setting)) for row in rows for setting in FLASH_ATTENTION]
    lines = [line(row, run, measure(row, args.folder, run)) for row, run in runs]
    print(table(lines))
    print(f"\n{target}; 256 + 64 tokens, medians of 5 rounds in turns; all measured")
    return 0


if __name__ == "__main__":
    finish("rows", lambda: main(sys.argv[1:]))
