"""What came from what: the graph of a life's stages, in columns, as figures and as a drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from dacheng.records import Artifact

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 128, 44, 44, 16


@dataclass(frozen=True, slots=True)
class LineageNode:
    """One stage. column: the longest way from a stage without inputs; row: its place in that column."""

    name: str
    do: str
    kind: str
    fingerprint: str
    parents: dict[str, str]
    column: int
    row: int


def lineage(life: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> list[LineageNode]:
    """The stages of a resolved life (Life.resolved, parents first) in its order. `parents` maps inputs to stages."""
    columns: dict[str, int] = {}
    filled: dict[int, int] = {}
    nodes = []
    for stage in life["stages"]:
        name, parents = stage["name"], dict(stage.get("from", {}))
        columns[name] = column = max((columns[parent] + 1 for parent in parents.values()), default=0)
        row = filled[column] = filled.get(column, -1) + 1
        made = artifacts.get(name)
        kind, fingerprint = (made.kind, made.fingerprint) if made is not None else ("", "")
        nodes.append(LineageNode(name, stage["do"], kind, fingerprint, parents, column, row))
    return nodes


def draw(nodes: list[LineageNode]) -> str:
    """An SVG of the graph in the colour of the text around it. Every name is escaped."""
    place = {node.name: _place(node) for node in nodes}
    width = max(x for x, _ in place.values()) + _WIDTH + 2
    height = max(y for _, y in place.values()) + _HEIGHT + 2
    parts = []
    for node in nodes:
        x, y = place[node.name]
        for parent in dict.fromkeys(node.parents.values()):
            x0, y0 = place[parent][0] + _WIDTH, place[parent][1] + _HEIGHT / 2
            middle, y1 = (x0 + x) / 2, y + _HEIGHT / 2
            parts.append(f'<path class="edge" d="M{x0:g} {y0:g} C{middle:g} {y0:g} {middle:g} {y1:g} {x:g} {y1:g}"/>')
    for node in nodes:
        x, y = place[node.name]
        centre = x + _WIDTH / 2
        parts.append(f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>')
        parts.append(f'<text x="{centre:g}" y="{y + 18:g}">{escape(_short(node.name))}</text>')
        under = f"{node.kind} {node.fingerprint[:8]}".strip() or node.do
        parts.append(f'<text class="small" x="{centre:g}" y="{y + 34:g}">{escape(_short(under, 22))}</text>')
    label = "which stage takes the result of which: " + "; ".join(
        f"{node.name} from {', '.join(dict.fromkeys(node.parents.values()))}" for node in nodes if node.parents
    )
    return (
        f'<svg class="lineage" role="img" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}">{"".join(parts)}</svg>'
    )


def _place(node: LineageNode) -> tuple[float, float]:
    return 1 + node.column * (_WIDTH + _GAP_X), 1 + node.row * (_HEIGHT + _GAP_Y)


def _short(text: str, limit: int = 16) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
