"""Several ways to make a model smaller, and which of them no other beats in both bytes and perplexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dacheng.compress.tables import aligned
from dacheng.errors import DachengError


@dataclass(frozen=True, slots=True)
class Variant:
    """One of them, measured: perplexity with its interval, ratio to that of the model before."""

    name: str
    disk_bytes: int
    perplexity: float
    low: float
    high: float
    ratio: float | None
    model_bytes: int | None = None
    prefill: float | None = None
    decode: float | None = None

    @classmethod
    def of(cls, name: str, comparison: Mapping[str, Any]) -> Variant:
        """From a Comparison as `to_dict` gives it, or as JSON brought it back. Raises DachengError without
        perplexity."""
        after, ratio = comparison["after"], comparison.get("perplexity_ratio")
        one = after.get("perplexity")
        if one is None:
            raise DachengError("this variant was judged without a text", field="perplexity", value=name,
                               remedy="give --text")  # fmt: skip
        return cls(name, after["disk_bytes"], one["estimate"], one["low"], one["high"],
                   None if ratio is None else ratio["estimate"], after.get("model_bytes"), after.get("prefill"),
                   after.get("decode"))  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def front(points: Sequence[Variant]) -> list[str]:
    """Names of those that no other is at least as good as in both and better in one, smallest first."""
    found = []
    for point in sorted(points, key=lambda p: (p.disk_bytes, p.perplexity)):
        better = any(
            other.disk_bytes <= point.disk_bytes and other.perplexity <= point.perplexity
            and (other.disk_bytes, other.perplexity) != (point.disk_bytes, point.perplexity)
            for other in points
        )  # fmt: skip
        if not better:
            found.append(point.name)
    return found


def table(points: Sequence[Variant]) -> str:
    """Smallest first; those of the front are marked."""
    best = set(front(points))
    rows = [("", "on disk", "in memory", "perplexity", "to before", "prefill", "decode")]
    for p in sorted(points, key=lambda p: p.disk_bytes):
        rows.append((
            f"{'*' if p.name in best else ' '} {p.name}", f"{p.disk_bytes / 1e6:.1f} MB",
            "" if p.model_bytes is None else f"{p.model_bytes / 1e6:.0f} MB",
            f"{p.perplexity:.2f} [{p.low:.2f}, {p.high:.2f}]", "" if p.ratio is None else f"{p.ratio:.3f}",
            "" if p.prefill is None else f"{p.prefill:.0f}", "" if p.decode is None else f"{p.decode:.1f}",
        ))  # fmt: skip
    return f"{aligned(rows)}\n* no other is both smaller and better; speeds in tok/s, one text"


def plot(points: Sequence[Variant], path: Path) -> bool:
    """Bytes against perplexity, the front as a line, into an SVG. False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    from matplotlib import pyplot

    best = front(points)
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0))
    line = [p for name in best for p in points if p.name == name]
    axes.plot([p.disk_bytes / 1e6 for p in line], [p.perplexity for p in line], color="#3b82c4", linewidth=1.4)
    for p in points:
        colour = "#3b82c4" if p.name in best else "#999999"
        spread = [[p.perplexity - p.low], [p.high - p.perplexity]]
        axes.errorbar([p.disk_bytes / 1e6], [p.perplexity], yerr=spread, fmt="o", color=colour, markersize=4)
        axes.annotate(p.name, (p.disk_bytes / 1e6, p.perplexity), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("MB on disk")
    axes.set_ylabel("perplexity")
    axes.set_yscale("log")
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return True
