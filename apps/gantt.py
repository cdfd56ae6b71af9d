"""Draws schedules: a line a processor, in the terminal or as SVG, colours and digits by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from edge.disk import write_text
from edge.jobs import processors_of
from edge.schedule import Timeline
from edge.trace import Word

Named = tuple[str, Timeline]

_COLUMNS = 100
_WIDTH, _LEFT, _ROW, _GAP, _TOP = 1200, 70, 28, 34, 40
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")


def draw_bars(runs: Sequence[Named], word: Word) -> Iterator[str]:
    """Lines of text: each column is the chunk worked on most in that time, "." where most is idle.

    All runs have one scale. Chunks from 10 on show their last digit. `word` says what times are.
    """
    column_s = max(timeline.makespan_s for _, timeline in runs) / _COLUMNS
    for name, timeline in runs:
        yield f"{name}: {timeline.makespan_s:.3f} s, a column is {1e3 * column_s:.2f} ms ({word})"
        for processor in reversed(processors_of(timeline.jobs)):
            yield f"  {processor:>4} {_bar(timeline, processor, column_s)}"


def write_svg(out: Path, title: str, runs: Sequence[Named], word: Word) -> None:
    """Write an SVG of the schedules. Raises NoSpace or OutputExists (a forbidden place)."""
    write_text(out, "\n".join(_svg(f"{title} ({word})", runs)) + "\n")


def _bar(timeline: Timeline, processor: str, column_s: float) -> str:
    columns: list[dict[int, float]] = [{} for _ in range(_COLUMNS)]
    for span in timeline.on(processor):
        chunk = timeline.jobs[span.place].chunk
        for column in range(int(span.start_s / column_s), _COLUMNS):
            start, end = column * column_s, (column + 1) * column_s
            overlap = min(span.end_s, end) - max(span.start_s, start)
            if overlap <= 0:
                break
            columns[column][chunk] = columns[column].get(chunk, 0.0) + overlap
    return "".join(_digit(shares, column_s) for shares in columns).rstrip()


def _digit(shares: dict[int, float], column_s: float) -> str:
    if sum(shares.values()) < column_s / 2:
        return "."
    return str(max(shares, key=lambda chunk: shares[chunk]) % 10)


def _svg(title: str, runs: Sequence[Named]) -> Iterator[str]:
    longest_s = max(timeline.makespan_s for _, timeline in runs)
    scale = (_WIDTH - _LEFT - 20) / longest_s
    rows = sum(len(processors_of(timeline.jobs)) for _, timeline in runs)
    height = _TOP + rows * _ROW + len(runs) * _GAP
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="13">'
    )
    yield f'<rect width="{_WIDTH}" height="{height}" fill="white"/>'
    yield f'<text x="10" y="20" font-size="15">{escape(title)}</text>'
    top = _TOP
    for name, timeline in runs:
        text = f"{name}: {timeline.makespan_s:.3f} s, NPU waits {timeline.bubble_share():.1%}"
        yield f'<text x="10" y="{top + 14}">{escape(text)}</text>'
        top += 20
        for processor in reversed(processors_of(timeline.jobs)):
            yield f'<text x="10" y="{top + 18}">{escape(processor)}</text>'
            yield from _rectangles(timeline, processor, scale, top)
            top += _ROW
        top += _GAP - 20
    yield "</svg>"


def _rectangles(timeline: Timeline, processor: str, scale: float, top: int) -> Iterator[str]:
    for span in timeline.on(processor):
        job = timeline.jobs[span.place]
        x, width = _LEFT + scale * span.start_s, scale * span.seconds
        yield (
            f'<rect x="{x:.2f}" y="{top}" width="{width:.2f}" height="{_ROW - 4}" '
            f'fill="{_COLOURS[job.chunk % len(_COLOURS)]}">'
            f"<title>{escape(job.name)}: {1e3 * span.seconds:.2f} ms</title></rect>"
        )
