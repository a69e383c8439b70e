"""Curves for the report as SVG that takes its colours from the page, so that it reads in dark and in light."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dacheng.errors import MissingExtra

_INK = "#010203"  # stands for the page's text colour until the SVG is written
_COLOURS = ("#3b82c4", "#d9822b", "#3a9d5d", "#b0529f")  # told apart on white and on near black


def available() -> bool:
    """Whether the extra `report` is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def line_plot(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    levels: Mapping[str, float] | None = None,
    identity: str,
) -> str:
    """SVG of {label: (x, y)} as lines and of {label: y} as dashed levels. `identity` keeps ids of several plots on one
    page apart. Raises MissingExtra without matplotlib."""
    figure, axes = _figure()
    for colour, (label, (x, y)) in zip(_COLOURS * 4, series.items()):
        marker = "o" if len(x) < 40 else ""
        axes.plot(x, y, label=_plain(label), color=colour, linewidth=1.6, marker=marker, markersize=3)
    for colour, (label, level) in zip(_COLOURS[::-1] * 4, (levels or {}).items()):
        axes.axhline(level, label=_plain(label), color=colour, linewidth=1.2, linestyle="--")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25, color=_INK, linewidth=0.5)
    if len(series) + len(levels or {}) > 1:
        axes.legend(frameon=False, labelcolor=_INK)
    return _svg(figure, identity, f"{y_label} by {x_label}")


def bar_plot(values: Mapping[str, float], *, x_label: str, identity: str) -> str:
    """SVG of horizontal bars, the first on top, each with its figure. Raises MissingExtra without matplotlib."""
    figure, axes = _figure(height=0.7 + 0.36 * len(values))
    labels = [_plain(label) for label in values]
    bars = axes.barh(
        labels, list(values.values()), color=[_COLOURS[0], *[_COLOURS[1]] * (len(labels) - 1)], height=0.62
    )
    axes.bar_label(bars, fmt="%.3f", padding=3, color=_INK)
    axes.invert_yaxis()
    axes.set_xlabel(x_label)
    axes.margins(x=0.12)
    return _svg(figure, identity, x_label)


def _plain(label: str, limit: int = 40) -> str:
    """A label that no font or formula parser chokes on: nothing unprintable, no mathtext."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in label[:limit])
    return text.replace("$", r"\$")


def _figure(height: float = 3.2) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "report") from None
    figure = Figure(figsize=(7.2, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    for spine in axes.spines.values():
        spine.set_color(_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _svg(figure: Any, identity: str, label: str) -> str:
    """The figure as an element to put into a page: no prolog, no metadata, ids of its own, text as text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": identity, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{identity}-", text).replace(_INK, "currentColor")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
