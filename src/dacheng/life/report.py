"""A life as one HTML page that needs nothing beside it: curves, floors, samples, drops, cost, lineage."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from dacheng import __version__
from dacheng.formats.atomic import replacing_file
from dacheng.life.report_sections import Story, duration, number, sections
from dacheng.records import Artifact


def render(
    path: Path, *, life: Mapping[str, Any], artifacts: Mapping[str, Artifact], totals: Mapping[str, Any]
) -> Path:
    """Writes the page to `path` and returns it.

    life: as Life.resolved gives it; artifacts: by stage; totals: as Ledger.totals gives them. Everything that came from
    outside (names, samples, file names) is escaped. Without matplotlib the tables stand alone.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True)
    template = environment.from_string(files("dacheng.life").joinpath("report.html").read_text(encoding="utf-8"))
    story = Story(life, artifacts, totals)
    page = template.render(
        life=life,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        summary=_summary(story),
        sections=sections(story),
    )
    with replacing_file(path) as file:
        file.write(page.encode("utf-8", "replace"))
    return path


def _summary(story: Story) -> list[str]:
    """The result in a sentence or two."""
    lines = []
    for _, made in story.of_kind("evaluation"):
        bits, floors = made.metrics.get("bits_per_byte"), made.metrics.get("floors", {})
        if bits is not None and floors:
            best = min(floors, key=lambda name: floors[name])
            below = 1 - bits / floors[best]
            apart = f"{100 * abs(below):.1f}% {'below' if below >= 0 else 'above'}"
            lines.append(
                f"{number(bits)} bits per byte, {apart} the best n-gram floor ({best}, {number(floors[best])})."
            )
    wall = story.totals.get("wall_s")
    if wall is not None:
        lines.append(f"{duration(wall)} in all, everything included.")
    return lines
