"""What verbs print: tables for people, one JSON line for scripts."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def print_json(values: Mapping[str, Any]) -> None:
    """One object on one line: the last line of standard output. ASCII, so it is valid anywhere."""
    print(json.dumps(values, allow_nan=False), flush=True)


def print_note(args: argparse.Namespace, note: str) -> None:
    """A line on standard error, unless there is none or --quiet."""
    if note and not args.quiet:
        print(f"note: {note}", file=sys.stderr)


@contextlib.contextmanager
def outlive_readers() -> Iterator[None]:
    """Within it, what is printed after a pipe's reader has gone goes nowhere, and work goes on."""
    output, errors = _lasting(sys.stdout), _lasting(sys.stderr)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        yield


class _LastingFile(io.FileIO):
    """A file that takes what its reader does not."""

    def write(self, data: ReadableBuffer) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def _lasting(stream: TextIO) -> TextIO:
    """The same output, outlasting its reader; the stream itself where no file is under it."""
    try:
        file = _LastingFile(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError):
        return stream
    # Written through, so that nothing is left to be flushed when an error ends the work.
    return io.TextIOWrapper(file, stream.encoding, stream.errors, write_through=True)


def megabytes(count: int) -> str:
    """Bytes as megabytes (10^6)."""
    return f"{count / 1e6:,.2f} MB"


def print_table(rows: Iterable[Sequence[object]]) -> None:
    """Left-aligned columns, two spaces apart."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))] if cells else []
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())
