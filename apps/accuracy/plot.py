"""A plot of KL divergence against size, as SVG: a line for each method, a point for each format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from apps.accuracy.measure import Row

WIDTH, HEIGHT = 760, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 180, 40, 50
_COLORS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8e5ea2", "#c98b2b", "#4d4d4d")
_LEAST_KL = 1e-6


@dataclass(frozen=True)
class Axis:
    """A range of values on a range of pixels; `log` for decades."""

    low: float
    high: float
    first: float
    last: float
    log: bool = False

    def place(self, value: float) -> float:
        """Pixel of a value."""
        low, high, at = (self._scaled(v) for v in (self.low, self.high, value))
        return self.first + (at - low) / (high - low) * (self.last - self.first)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def draw(rows: Sequence[Row], title: str) -> str:
    """The SVG text. Rows without divergence (float) have no place on a logarithmic axis."""
    shown = [row for row in rows if row.score.kl > _LEAST_KL]
    sizes = [row.byte_count for row in shown] or [1]
    kls = [row.score.kl for row in shown] or [1.0]
    x = Axis(0, max(sizes) * 1.05, _LEFT, WIDTH - _RIGHT)
    low, high = math.floor(math.log10(min(kls))), math.ceil(math.log10(max(kls)) + 1e-9)
    y = Axis(10.0**low, 10.0 ** max(high, low + 1), HEIGHT - _BOTTOM, _TOP, log=True)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 22, title, "middle", 14),
        *_grid(x, y, range(low, max(high, low + 1) + 1)),
    ]
    for index, name in enumerate(dict.fromkeys(map(series_of, shown))):
        same = sorted((r for r in shown if series_of(r) == name), key=lambda r: r.byte_count)
        parts += _series(x, y, same, _COLORS[index % len(_COLORS)])
        parts.append(_legend(index, name))
    return "\n".join([*parts, "</svg>"]) + "\n"


def series_of(row: Row) -> str:
    """The line that a row is on."""
    return "llama.cpp" if row.peer else f"lutra {row.method}, {row.target}"


def _grid(x: Axis, y: Axis, decades: Iterable[int]) -> list[str]:
    parts = []
    for exponent in decades:
        at = y.place(10.0**exponent)
        parts.append(_line(x.first, at, x.last, at))
        parts.append(_text(_LEFT - 8, at + 4, f"{10.0**exponent:g}", "end"))
    for step in range(5):
        size = x.high * step / 4
        at = x.place(size)
        parts.append(_line(at, y.first, at, y.last))
        parts.append(_text(at, HEIGHT - _BOTTOM + 18, f"{size / 1e6:.3g}", "middle"))
    parts.append(_text((x.first + x.last) / 2, HEIGHT - 10, "weights, MB", "middle"))
    parts.append(_text(8, _TOP - 8, "KL, nats a token"))
    return parts


def _series(x: Axis, y: Axis, rows: Sequence[Row], color: str) -> list[str]:
    points = [(x.place(row.byte_count), y.place(row.score.kl), row) for row in rows]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
    parts = [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>']
    for px, py, row in points:
        label = escape(row.name.removeprefix("llama.cpp "))
        parts.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{color}">'
            f"<title>{escape(row.name)}: {row.byte_count} bytes, KL {row.score.kl:.4f}</title>"
            "</circle>"
        )
        parts.append(f'<text x="{px + 6:.1f}" y="{py - 5:.1f}" font-size="9">{label}</text>')
    return parts


def _legend(index: int, name: str) -> str:
    at, color = _TOP + 18 * index, _COLORS[index % len(_COLORS)]
    dot = f'<circle cx="{WIDTH - _RIGHT + 20}" cy="{at}" r="4" fill="{color}"/>'
    return dot + _text(WIDTH - _RIGHT + 30, at + 4, name)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(text)}</text>"
    )
