"""Plots as SVG: bars on a logarithmic scale, each with its spread, and curves on two such scales."""

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


PANEL, TALL, SPACE, FOOT = 330, 190, 74, 56  # of the field of a panel: width, height, what is left and below of it
COLORS = ("#2a7ab0", "#c05020", "#3a8a3a", "#8050a0")

Curves = dict[str, list[tuple[float, float]]]  # name -> (x, y), all above 0


def panels(fields: list[tuple[str, str, Curves]]) -> str:
    """`fields`: (title, what x is, its curves), two in a row. Who is in several has one colour in all."""
    names = list(dict.fromkeys(name for _, _, curves in fields for name in curves))
    width, height = 2 * (SPACE + PANEL) + 20, math.ceil(len(fields) / 2) * (TOP + TALL + FOOT) + LINE
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, name in enumerate(names):
        x, color = SPACE + number * 120, COLORS[number % len(COLORS)]
        lines.append(f'<circle cx="{x}" cy="12" r="4" fill="{color}"/><text x="{x + 9}" y="16">{escape(name)}</text>')
    for number, field in enumerate(fields):
        x, y = SPACE + number % 2 * (SPACE + PANEL), LINE + TOP + number // 2 * (TOP + TALL + FOOT)
        lines += [f'<g transform="translate({x} {y})">', *_panel(*field, names), "</g>"]
    return "\n".join([*lines, "</svg>\n"])


def _panel(title: str, what: str, curves: Curves, names: list[str]) -> Iterator[str]:
    points = [point for curve in curves.values() for point in curve]
    ticks = sorted({x for x, _ in points})
    least, most = math.log10(min(ticks, default=1)), math.log10(max(ticks, default=10))
    low = math.floor(math.log10(min((y for _, y in points), default=1)))
    high = max(low + 1, math.ceil(math.log10(max((y for _, y in points), default=10))))

    def across(x: float) -> float:
        return (math.log10(x) - least) / ((most - least) or 1) * PANEL

    def down(y: float) -> float:
        return TALL - (math.log10(y) - low) / (high - low) * TALL

    yield f'<text x="0" y="-10" font-size="14">{escape(title)}</text>'
    for power in range(low, high + 1):
        y = down(10**power)
        yield f'<line x1="0" y1="{y:.1f}" x2="{PANEL}" y2="{y:.1f}" stroke="#ddd"/>'
        yield f'<text x="-6" y="{y + 4:.1f}" text-anchor="end" fill="#777">{10**power:,}</text>'
    for tick in ticks:
        x = across(tick)
        yield f'<text x="{x:.1f}" y="{TALL + 16}" text-anchor="middle" fill="#777">{escape(short(tick))}</text>'
    yield f'<text x="{PANEL / 2}" y="{TALL + 34}" text-anchor="middle">{escape(what)}</text>'
    for name, curve in curves.items():
        color = COLORS[names.index(name) % len(COLORS)]
        places = [(across(x), down(y)) for x, y in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>'
        for x, y in places:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>'


def short(number: float) -> str:
    """1, 10, 1k, 1M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"
