"""A run as one HTML file that needs nothing beside it, made of its journal, its result and its exam's answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from dacheng import __version__
from dacheng.formats.atomic import replacing_file
from dacheng.formats.json_files import read_json
from dacheng.stages.adapting.events import FILE_NAME, read_events
from dacheng.stages.adapting.state import ROWS, RunState, replay

NAMES = {"bare": "bare model", "sources": "model + sources", "adapted": "adapted + sources + gate",
         "quote": "quote only + gate", "sources+gate": "model + sources + gate",
         "adapted-gate": "adapted + sources, no gate", "quote-gate": "quote only, no gate"}  # fmt: skip
MEASURES = {"all_right": "helpful", "right": "right", "cited_right": "cited right", "answered": "answered",
            "abstained": "abstained", "invented": "invented names", "abstention_auroc": "abstention AUROC"}  # fmt: skip
_EXAMPLES = 12  # questions that are shown with all rows' answers
_WIDTH, _HEIGHT = 800, 220


def write_report(out: Path) -> Path:
    """out/report.html, of what the directory of a run holds. Everything from outside is escaped."""
    from jinja2 import Environment

    state = replay(read_events(out / FILE_NAME)[0])
    result = read_json(out / "result.json") if (out / "result.json").exists() else {}
    template = files("dacheng.stages.adapting").joinpath("report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True).from_string(template).render(
        state=state, version=__version__, verdict=state.verdict, tables=_tables(result), facts=_facts(state, result),
        curve=_curve(state), drops=_drops(state), probes=_probes(state), examples=_examples(out), plugs=_plugs(state),
        costs=_costs(result, state), names=NAMES,
    )  # fmt: skip
    with replacing_file(out / "report.html") as file:
        file.write(page.encode("utf-8", "replace"))
    return out / "report.html"


def _tables(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The exam, over all questions and over the hand-written and the drawn ones."""
    rows = result.get("rows", {})
    order = [*ROWS, *(name for name in rows if name not in ROWS)]
    tables = []
    for group, title in (("all", "All questions"), ("hand", "Written by hand"), ("drawn", "Drawn from held-out parts")):
        known = [(name, rows[name][group]) for name in order if group in rows.get(name, {})]
        if known and (group == "all" or len(rows[known[0][0]]) > 2):
            body = [
                [NAMES.get(name, name), *(_three(scores.get(m)) for m in MEASURES), _seconds(scores)]
                for name, scores in known
            ]
            tables.append({"title": title, "columns": ["", *MEASURES.values(), "s an answer"], "rows": body})
    return tables


def _three(score: Any) -> str:
    return "–" if not score else f"{100 * score[0]:.1f} [{100 * score[1]:.1f}, {100 * score[2]:.1f}]"


def _seconds(scores: Mapping[str, Any]) -> str:
    return f"{scores['seconds'][0]:.2f}" if "seconds" in scores else "–"


def _facts(state: RunState, result: Mapping[str, Any]) -> list[tuple[str, str]]:
    read, gate, plan = state.reading, state.gate, state.plan
    took = ""
    if state.began and state.ended:
        seconds = (datetime.fromisoformat(state.ended) - datetime.fromisoformat(state.began)).total_seconds()
        took = f"{seconds / 60:.1f} minutes from the first start to the end, {state.starts} start(s)"
    auroc = gate.get("auroc")
    return [
        ("documents", f"{read.get('files')} files, {read.get('passages')} passages, {read.get('bytes')} bytes"),
        ("retrieval", str(read.get("retrieval", ""))),
        ("model", state.model or "none"),
        ("questions", ", ".join(f"{count} {name}" for name, count in state.questions.items())),
        ("gate", f"threshold {_figure(gate.get('threshold'))}, AUROC {_figure(auroc)} on the calibration split"),
        ("plan", f"{_figure(plan.get('train_seconds'))} s of training, {plan.get('exam_questions')} questions a row"),
        ("training", f"{len(state.losses)} steps" if state.losses else "none"),
        ("seed", str(state.seed)),
        ("took", took),
    ]


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else "–"


def _curve(state: RunState) -> str:
    """SVG of the loss by step, of numbers only."""
    points = [(step, loss) for step, loss in sorted(state.losses.items()) if math.isfinite(loss)]
    if len(points) < 2:
        return ""
    top, most = max(loss for _, loss in points) or 1.0, max(2, points[-1][0])
    x = lambda step: 48 + (step - 1) / (most - 1) * (_WIDTH - 60)  # noqa: E731
    y = lambda loss: 10 + (1 - loss / top) * (_HEIGHT - 40)  # noqa: E731
    line = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in points)
    plugs = "".join(
        f'<line class="plug" x1="{x(p.step):.1f}" x2="{x(p.step):.1f}" y1="10" y2="{y(0):.1f}"/>' for p in state.plugs
    )
    label = escape(f"training loss, {points[0][1]:.3g} at step {points[0][0]} to {points[-1][1]:.3g} at step {most}")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f'<line class="axis" x1="48" x2="{_WIDTH}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>{plugs}<polyline points="{line}"/>'
        f'<text x="0" y="18">{top:.3g}</text><text x="0" y="{y(0):.1f}">0</text>'
        f'<text x="{_WIDTH - 80}" y="{_HEIGHT - 8}">step {most}</text></svg>'
    )


def _drops(state: RunState) -> list[tuple[str, int, str]]:
    drops = state.reading.get("drops") or {}
    counts = drops.get("dropped", drops)
    examples = drops.get("examples", {})
    return [(why.replace("_", " "), n, str(examples.get(why, ""))) for why, n in counts.items() if isinstance(n, int)]


def _probes(state: RunState) -> list[dict[str, Any]]:
    found = []
    for question, answers in state.probes.items():
        said = [
            {"when": f"{NAMES.get(str(a.get('mode')), '')}, " + (f"step {a['step']}" if a.get("step") else "before"),
             "answer": "Not in the documents." if a.get("abstained") else a.get("answer", "")}
            for a in answers
        ]  # fmt: skip
        found.append({"question": question, "answers": said})
    return found


def _examples(out: Path) -> list[dict[str, Any]]:
    """The first questions of the exam with every row's answer."""
    by_question: dict[str, dict[str, Any]] = {}
    for row in ROWS:
        path = out / "exam" / f"{row}.jsonl"
        for raw in path.read_bytes().splitlines() if path.exists() else []:
            try:
                line = json.loads(raw)
            except ValueError:
                continue
            if not isinstance(line, dict) or "text" not in line or "id" not in line:
                continue
            known = by_question.setdefault(str(line["id"]), {"question": line.get("question", ""), "rows": [],
                                                             "accepted": line.get("accepted", [])})  # fmt: skip
            scores = line.get("scores", {})
            right = scores.get("gated" if row in ("adapted", "quote") else "ungated", {}).get("right")
            known["rows"].append((NAMES[row], line["text"], right))
    return list(by_question.values())[:_EXAMPLES]


def _plugs(state: RunState) -> list[str]:
    said = []
    for plug in state.plugs:
        same = {True: "bit-identical", False: "DIFFERENT", None: "not compared"}[plug.identical]
        said.append(
            f"ended at step {plug.step}, went on from step {plug.from_step}: {plug.compared} repeated steps, {same}"
        )
    return said


def _costs(result: Mapping[str, Any], state: RunState) -> list[tuple[str, str]]:
    totals = result.get("totals", {})
    if not totals:
        return []
    money = totals.get("money") or {}
    mark = " (assumed prices)" if totals.get("assumed") else ""
    return [
        ("wall", f"{totals.get('wall_s', 0):.0f} s"),
        ("CPU", f"{totals.get('cpu_s', 0):.0f} s"),
        ("energy", f"{totals.get('joules', 0):.0f} J ({totals.get('joules_kind')})"),
        ("money", f"{money.get('total', 0):.4f} {totals.get('currency')}{mark}"),
    ]
