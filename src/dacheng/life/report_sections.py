"""The parts of a report, each from what a stage left. A section whose stage was not run is not there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dacheng.life import plots
from dacheng.life.lineage import draw, lineage
from dacheng.records import Artifact

_TABLE_ROWS = 40


@dataclass(slots=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    title: str = ""


@dataclass(slots=True)
class Section:
    """`plots` are SVG made here, from escaped text; everything else is text that the template escapes."""

    title: str
    texts: list[str] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    folded: Table | None = None


@dataclass(slots=True)
class Story:
    """What the sections are made of: the resolved life, its artifacts by stage, its ledger's totals."""

    life: Mapping[str, Any]
    artifacts: Mapping[str, Artifact]
    totals: Mapping[str, Any]

    def of_kind(self, kind: str) -> list[tuple[str, Artifact]]:
        return [(name, made) for name, made in self.artifacts.items() if made.kind == kind]


def sections(story: Story) -> list[Section]:
    from dacheng.life.report_alignment import alignment

    makers = (_training, _floors, alignment, _samples, _plan, _data, _cost, _lineage, _environment)
    return [section for make in makers for section in make(story)]


# --- figures as text --------------------------------------------------------------------------------------------------
def number(value: Any, digits: int = 4) -> str:
    """12 345 678, 0.1234, 1.23e+15; "–" for what is not there."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if 1000 <= abs(value) < 1e10 or isinstance(value, int):
        return f"{round(value):,}".replace(",", "\u202f")
    return f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds < 90
        else f"{seconds / 60:.1f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines with a step of a JSONL log; a torn one is passed over, as its writer will have written it again."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            found.append(value)
    return found


def _thin(rows: list[Any], limit: int = _TABLE_ROWS) -> list[Any]:
    """At most `limit` of `rows`, evenly, the last always."""
    every = -(-len(rows) // limit) or 1
    return rows[::-1][::every][::-1]


# --- sections ---------------------------------------------------------------------------------------------------------
def _training(story: Story) -> Iterator[Section]:
    trained = [(name, made) for name, made in story.of_kind("model") if "alignment" not in made.metrics]
    for index, (name, model) in enumerate(trained):
        log = read_lines(model.path.parent / "train.jsonl")
        steps = [row for row in log if isinstance(row.get("loss"), (int, float))]
        evaluations = [row for row in log if "evaluation" in row]
        section = Section(f"Training ({name})")
        figures = (layout.format(model.metrics[key]) for key, layout in _TRAINED if model.metrics.get(key) is not None)
        section.texts.append(" · ".join(figures).replace(",", "\u202f"))
        section.lines = [str(line) for line in model.metrics.get("budget", [])]
        valid = [(r["step"], r["evaluation"].get("valid/bits_per_byte")) for r in evaluations]
        valid = [(step, value) for step, value in valid if isinstance(value, (int, float))]
        if steps and plots.available():
            x, y = [r["step"] for r in steps], [r["loss"] for r in steps]
            series = {"each step": (x, y), "smoothed": (x, _smooth(y))} if len(y) > 20 else {"each step": (x, y)}
            section.plots.append(
                plots.line_plot(series, x_label="step", y_label="training loss, nats a token", identity=f"loss{index}")
            )
        elif steps:
            section.texts.append("Curves need the extra `report`: pip install 'dacheng[report]'.")
        if valid and plots.available():
            curve = {"validation": ([s for s, _ in valid], [v for _, v in valid])}
            levels = _floor_levels(story)
            section.plots.append(
                plots.line_plot(curve, x_label="step", y_label="bits per byte", levels=levels, identity=f"bpb{index}")
            )
        rows = [
            [number(r["step"]), number(r["loss"]), number(r.get("grad_norm")), number(r.get("tokens"))]
            for r in _thin(steps)
        ]
        if rows:
            section.folded = Table(["step", "loss", "gradient norm", "tokens"], rows, title="figures by step")
        if valid:
            section.tables.append(
                Table(["step", "valid bits per byte"], [[number(s), number(v)] for s, v in _thin(valid, 12)])
            )
        yield section


_TRAINED = (
    ("parameters", "{:,} parameters"), ("steps", "{:,} steps"), ("tokens", "{:,} tokens"), ("flops", "{:.3g} FLOPs"),
    ("tokens_per_s", "{:,.0f} tokens/s"), ("mfu", "{:.0%} of the matmul peak (MFU)"),
)  # fmt: skip


def _smooth(values: Sequence[float], weight: float = 0.95) -> list[float]:
    """Exponential moving average, corrected for its start (Kingma & Ba 2015, section 3)."""
    mean, out = 0.0, []
    for count, value in enumerate(values, 1):
        mean = weight * mean + (1 - weight) * value
        out.append(mean / (1 - weight**count))
    return out


def _floor_levels(story: Story) -> dict[str, float]:
    levels: dict[str, float] = {}
    for _, evaluation in story.of_kind("evaluation"):
        floors = evaluation.metrics.get("floors", {})
        best = sorted(floors, key=lambda name: floors[name])[:2]
        levels.update({name: floors[name] for name in best})
    return levels


def _floors(story: Story) -> Iterator[Section]:
    for index, (name, made) in enumerate(story.of_kind("evaluation")):
        found = made.metrics
        section = Section(f"Against the floors ({name})")
        values = {"the model": found["bits_per_byte"]} if "bits_per_byte" in found else {}
        values |= dict(sorted(found.get("floors", {}).items(), key=lambda item: item[1]))
        if values and plots.available():
            section.plots.append(
                plots.bar_plot(values, x_label="bits per byte (lower is better)", identity=f"floors{index}")
            )
        rows = [[who, number(bits)] for who, bits in values.items()]
        note = f"on {number(found.get('bytes'))} bytes of {number(found.get('documents'))} held-out documents"
        section.tables.append(Table(["", "bits per byte"], rows, note))
        parse = found.get("parse", {})
        if parse:
            section.tables.append(_parse_table(parse))
        yield section


def _parse_table(parse: Mapping[str, Mapping[str, Any]]) -> Table:
    measures = (("parse", "parses whole"), ("parse_trimmed", "parses in part"), ("kept_lines", "lines that parse"))
    rows = [[who, *(interval(found, key) for key, _ in measures)] for who, found in parse.items()]
    count = max(found.get("n", 0) for found in parse.values())
    note = f"completions of {number(count)} function headers from held-out files, read by ast.parse; 95% intervals"
    return Table(["", *(title for _, title in measures)], rows, note)


def interval(found: Mapping[str, Any], key: str) -> str:
    if f"{key}_low" not in found:
        return percent(found.get(key))
    return f"{percent(found[key])} [{100 * found[f'{key}_low']:.1f}, {100 * found[f'{key}_high']:.1f}]"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _samples(story: Story) -> Iterator[Section]:
    for name, made in story.of_kind("samples"):
        try:
            rows = json.loads(made.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        section = Section(f"Samples ({name})")
        for row in rows:
            parts = [(label, row[key]) for key, label in _SAMPLE_PARTS if row.get(key) is not None]
            title = f"temperature {number(row.get('temperature'))}"
            section.samples.append({"title": title, "prompt": row["prompt"], "parts": parts})
        yield section


_SAMPLE_PARTS = (("before", "before training"), ("after", "after training"), ("ngram", "n-gram sampler"))


def _plan(story: Story) -> Iterator[Section]:
    for name, made in story.of_kind("plan"):
        yield Section(f"The plan ({name})", lines=[str(line) for line in made.metrics.get("formula", [])])


def _data(story: Story) -> Iterator[Section]:
    for name, made in story.of_kind("documents"):
        drops = made.metrics.get("drops", {})
        section = Section(f"Data ({name})")
        kept = f"{number(drops.get('kept'))} documents kept, {number(drops.get('kept_bytes'))} bytes"
        section.texts.append(kept)
        dropped, sizes, examples = (drops.get(key, {}) for key in ("dropped", "dropped_bytes", "examples"))
        rows = [[why, number(n), number(sizes.get(why)), str(examples.get(why, ""))] for why, n in dropped.items()]
        rows = rows or [["nothing", "0", "0", ""]]
        section.tables.append(Table(["dropped because", "documents", "bytes", "for example"], rows))
        altered = drops.get("altered", {})
        if altered:
            section.tables.append(Table(["altered", "times"], [[why, number(n)] for why, n in altered.items()]))
        yield section
    for name, made in story.of_kind("tokens"):
        splits = {key: value for key, value in made.metrics.items() if isinstance(value, dict)}
        keys = ("documents", "tokens", "bytes", "bytes_per_token", "rows", "fill_rate")
        rows = [[split, *(number(values.get(key)) for key in keys)] for split, values in splits.items()]
        yield Section(f"Tokens ({name})", tables=[Table(["split", *(key.replace("_", " ") for key in keys)], rows)])


def _cost(story: Story) -> Iterator[Section]:
    rows, totals = [], story.totals
    for name, made in story.artifacts.items():
        t = made.totals
        rows.append([name, *_cost_cells(t)])
    rows.append(["the whole life", *_cost_cells(totals)])
    assumed = ", ".join(totals.get("assumed", ()))
    note = "Times are measured; FLOPs are the models' own formulas (estimated). "
    note += f"Prices that nobody stated are assumed: {assumed}. " if assumed else ""
    note += "The whole life includes interrupted attempts and replaced results, but not this page."
    columns = ["stage", "wall", "CPU", "memory peak", "tokens", "FLOPs", "energy", "power", "hardware", "labour"]
    yield Section("What it cost", tables=[Table(columns, rows, note)])


def _cost_cells(t: Mapping[str, Any]) -> list[str]:
    money, currency = t.get("money") or {}, t.get("currency") or ""
    mark = " (assumed)" if t.get("assumed") else ""
    paid = [
        f"{money.get(part, 0.0):.4f} {currency}{mark if money.get(part) else ''}"
        for part in ("power", "hardware", "labour")
    ]
    energy = f"{t.get('joules', 0.0) / 1000:.3g} kJ ({t.get('joules_kind', 'estimated')})"
    return [
        duration(t.get("wall_s", 0.0)),
        duration(t.get("cpu_s", 0.0)),
        f"{t.get('peak_bytes', 0) / 1e6:.0f} MB",
        number(t.get("tokens", 0)),
        f"{t.get('flops', 0.0):.3g}",
        energy,
        *paid,
    ]


def _lineage(story: Story) -> Iterator[Section]:
    nodes = lineage(story.life, story.artifacts)
    rows = []
    for node in nodes:
        came = ", ".join(f"{name}: {parent}" for name, parent in node.parents.items())
        rows.append([node.name, node.do, node.kind, came, node.fingerprint[:16]])
    table = Table(["stage", "does", "made", "from", "fingerprint"], rows, title="as a table")
    yield Section("Lineage", plots=[draw(nodes)], folded=table)


def _environment(story: Story) -> Iterator[Section]:
    import platform

    rows = [["python", platform.python_version()], ["system", platform.platform()]]
    for _, made in story.of_kind("machine"):
        m = made.metrics
        speeds = ", ".join(f"{name} {number(value)} GFLOPS" for name, value in m.get("matmul_gflops", {}).items())
        rows += [
            ["processor", str(m.get("cpu_model"))],
            ["cores and threads", f"{m.get('cores')} cores, {m.get('threads')} threads"],
            ["instructions", ", ".join(m.get("capabilities", []))],
            ["memory", f"{m.get('memory_bytes', 0) / 2**30:.1f} GiB"],
            ["matmul peak, measured", f"{speeds}, {m.get('measured_at')}"],
            ["torch", str(m.get("torch_version"))],
        ]
    yield Section("Environment", tables=[Table(["", ""], rows)])
