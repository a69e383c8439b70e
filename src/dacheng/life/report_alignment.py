"""The part of a report about alignment: what a model does before and after, and what that cost elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dacheng.life import plots
from dacheng.life.report_sections import Section, Story, Table, interval, number, percent, read_lines
from dacheng.records import Artifact

_ROWS = (
    ("parse", "parses whole (ast.parse)"),
    ("parse_trimmed", "parses in part"),
    ("kept_lines", "lines that parse"),
)
_PLAIN = (
    ("ended", "ended by itself", percent),
    ("tokens", "tokens a completion", number),
    ("code_lines", "code lines a completion", number),
    ("different", "different completions", percent),
    ("bits_per_byte", "bits per byte of held-out text", number),
)


def alignment(story: Story) -> Iterator[Section]:
    """One for each aligned model."""
    for index, (name, made) in enumerate(story.of_kind("model")):
        found = made.metrics.get("alignment")
        if not isinstance(found, Mapping):
            continue
        section = Section(f"Alignment ({name}): before → after")
        before, after, apart = found["before"], found["after"], found["difference"]
        section.texts.append(
            f"{percent(before['parse'])} of {number(before.get('n'))} held-out functions parsed before, "
            f"{percent(after['parse'])} after: {_points(apart['estimate'])} points "
            f"(95% over functions: {_points(apart['low'])} to {_points(apart['high'])})."
        )
        rows = [[said, interval(before, key), interval(after, key)] for key, said in _ROWS]
        rows += [[said, show(before.get(key)), show(after.get(key))] for key, said, show in _PLAIN]
        note = "the same headers and seeds before and after. Shorter completions parse more easily: read both together"
        section.tables.append(Table(["", "before", "after"], rows, note))
        section.plots += _plots(made, index)
        section.samples = _samples(made)
        yield section


def _plots(made: Artifact, index: int) -> list[str]:
    """The rewards, and the length, of each set of rollouts."""
    log = read_lines(made.path.parent / "training" / "sets.jsonl")
    if len(log) < 2 or not plots.available():
        return []
    steps, found = [row["step"] for row in log], []
    rewards = {"parses": _column(log, "rewards/ast/mean"), "lines that parse": _column(log, "rewards/lines/mean")}
    curves = {said: (steps, values) for said, values in rewards.items() if values}
    if curves:
        found.append(plots.line_plot(curves, x_label="step", y_label="reward", identity=f"reward{index}"))
    lengths = _column(log, "completions/mean_length")
    if lengths:
        curve = {"completions": (steps, lengths)}
        found.append(plots.line_plot(curve, x_label="step", y_label="tokens", identity=f"length{index}"))
    return found


def _column(log: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Of each line; [] where one lacks it."""
    values = [row.get(key) for row in log]
    return [float(v) for v in values if isinstance(v, (int, float))] if None not in values else []


def _samples(made: Artifact) -> list[dict[str, Any]]:
    try:
        rows = json.loads((made.path.parent / "alignment.json").read_text(encoding="utf-8"))["samples"]
        return [
            {"title": "", "prompt": row["prompt"], "parts": [("before", row["before"]), ("after", row["after"])]}
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
