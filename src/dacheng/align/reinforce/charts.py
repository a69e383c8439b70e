"""Curves as SVG in the page's own colours, from numbers alone: a report needs no plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 460, 240, 56, 36, 26, 12
_COLOURS = ("#3b82c4", "#d9822b", "#3a9d5d", "#b0529f")  # told apart on white and on near black
MAX_POINTS = 400  # of a curve; more are thinned out

Points = Sequence[tuple[float, float]]


def curves(series: Mapping[str, Points], *, x_label: str, y_label: str) -> str:
    """{label: points} as lines, in the order of the points (a path through a plane may turn back). Points that are not
    finite are left out; "" where none is left."""
    kept = {label: _thinned([p for p in points if all(map(math.isfinite, p))]) for label, points in series.items()}
    kept = {label: points for label, points in kept.items() if points}
    if not kept:
        return ""
    xs, ys = zip(*(p for points in kept.values() for p in points))
    x0, x1, y0, y1 = *_range(xs), *_range(ys)

    def place(point: tuple[float, float]) -> str:
        x = _LEFT + (point[0] - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
        y = _HEIGHT - _BOTTOM - (point[1] - y0) / (y1 - y0) * (_HEIGHT - _BOTTOM - _TOP)
        return f"{x:.1f},{y:.1f}"

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"{y_label} by {x_label}")}">']
    parts.append(
        f'<path d="M{_LEFT},{_TOP} V{_HEIGHT - _BOTTOM} H{_WIDTH - _RIGHT}" fill="none" stroke="currentColor"/>'
    )
    for number, (label, points) in enumerate(kept.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        way = " ".join(map(place, points))
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(_text(_LEFT + 8 + 130 * number, 14, label, colour))
    for value, y in ((y0, _HEIGHT - _BOTTOM), (y1, _TOP + 8)):
        parts.append(_text(_LEFT - 6, y, f"{value:.3g}", anchor="end"))
    for value, x, anchor in ((x0, _LEFT, "start"), (x1, _WIDTH - _RIGHT, "end")):
        parts.append(_text(x, _HEIGHT - _BOTTOM + 14, f"{value:.3g}", anchor=anchor))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, f"{y_label} by {x_label}", anchor="middle"))
    return "".join([*parts, "</svg>"])


def _text(x: float, y: float, text: str, colour: str = "currentColor", anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" font-size="11" text-anchor="{anchor}">{escape(text)}</text>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _thinned(points: Points) -> Points:
    return points if len(points) <= MAX_POINTS else points[:: -(-len(points) // MAX_POINTS)]
