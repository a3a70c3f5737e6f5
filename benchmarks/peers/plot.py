"""A plot as SVG: bars on a logarithmic scale, each with its spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from html import escape

LEFT, WIDTH, RIGHT = 230, 480, 90  # of the names, the bars and the figures, in pixels
TOP, LINE = 44, 22


def bars(title: str, rows: list[tuple[str, float, float, float]]) -> str:
    """`rows`: (name, lowest, median, highest), all above 0."""
    most = math.ceil(math.log10(max((row[3] for row in rows), default=10.0)))
    least = min(math.floor(math.log10(min((row[1] for row in rows), default=1.0))), most - 1)

    def place(value: float) -> float:
        return LEFT + (math.log10(value) - least) / (most - least) * WIDTH

    height = TOP + LINE * len(rows) + 8
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + RIGHT}" height="{height}" '
            'font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="8" y="18" font-size="14">{escape(title)}</text>',
            *_scale(least, most, height),
            *(part for number, row in enumerate(rows) for part in _bar(number, *row, place)),
            "</svg>\n",
        ]
    )


def _scale(least: int, most: int, height: int) -> Iterator[str]:
    for power in range(least, most + 1):
        x = LEFT + (power - least) / (most - least) * WIDTH
        yield f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{height - 8}" stroke="#ddd"/>'
        yield f'<text x="{x:.1f}" y="{TOP - 10}" text-anchor="middle" fill="#777">{10**power:,}</text>'


def _bar(
    number: int, name: str, low: float, middle: float, high: float, place: Callable[[float], float]
) -> Iterator[str]:
    y = TOP + LINE * number
    color = "#2a7ab0" if name.startswith("delayed") else "#b0b0b0"
    yield f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
    yield f'<rect x="{LEFT}" y="{y + 2}" width="{max(1.0, place(middle) - LEFT):.1f}" height="14" fill="{color}"/>'
    yield (
        f'<line x1="{place(low):.1f}" y1="{y + 9}" x2="{place(high):.1f}" y2="{y + 9}" stroke="#222" stroke-width="2"/>'
    )
    yield f'<text x="{place(high) + 6:.1f}" y="{y + 13}">{middle:,.0f}</text>'
