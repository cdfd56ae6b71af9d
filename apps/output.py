"""What verbs print: tables for people, one JSON line for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def print_json(values: Mapping[str, Any]) -> None:
    """One object on one line: the last line of standard output."""
    print(json.dumps(values, ensure_ascii=False, allow_nan=False), flush=True)


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
