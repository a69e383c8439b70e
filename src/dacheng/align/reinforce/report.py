"""The page of a run: reward against KL, lengths, entropy, who wins, answers side by side, and whether the reward is
still worth following."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from dacheng.align.reinforce.charts import curves
from dacheng.align.reinforce.held_out import Measured, win_rate
from dacheng.align.reinforce.watch import SETS
from dacheng.errors import DachengError
from dacheng.evaluate.intervals import Interval
from dacheng.formats.atomic import replacing_file
from dacheng.formats.json_files import parse_json

REPORT, TRAINING = "report.html", "training"
MAX_SAMPLES = 12
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
:root{color-scheme:light dark} .charts{display:flex;flex-wrap:wrap;gap:1rem} svg{width:29rem;max-width:100%}
table{border-collapse:collapse;width:100%} td,th{border-bottom:1px solid #8884;padding:.3rem .6rem;text-align:left;
vertical-align:top} pre{white-space:pre-wrap;margin:0} .worse{color:#b0529f} .better{color:#3a9d5d}"""


@dataclass(slots=True)
class Story:
    """What a run left. sets: lines of sets.jsonl; steps: of train.jsonl."""

    sets: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    before: Measured | None = None
    after: Measured | None = None
    notes: list[str] = field(default_factory=list)


def read_story(out: Path) -> Story:
    """From the directory of a stage, or of train_policy alone. Raises DachengError where there is no such run."""
    training = out / TRAINING if (out / TRAINING).is_dir() else out
    sets = _lines(training / SETS)
    if not sets:
        raise DachengError("no run of `do: reinforce` is here", field="path", value=str(out),
                           remedy="name the directory that it wrote to")  # fmt: skip
    story = Story(sets, _lines(training / "train.jsonl"))
    story.before, story.after = Measured.load(out / "before.json"), Measured.load(out / "after.json")
    story.notes = findings(story)
    return story


def stage_of(run: Path) -> Path:
    """Where a run learnt from rewards: `run` itself, or in the directory of a life the one stage of it that did. Raises
    DachengError where there is none, or several."""
    if not (run / "stages").is_dir():
        return run
    found = sorted(path.parents[1] for path in (run / "stages").glob(f"*/{TRAINING}/{SETS}"))
    if len(found) != 1:
        remedy = f"name one: {', '.join(map(str, found))}" if found else "a life with a stage of `do: reinforce`"
        problem = f"{len(found)} stages of this life learnt from rewards"
        raise DachengError(problem, field="RUN", value=str(run), remedy=remedy)
    return found[0]


def write_report(out: Path, *, title: str = "Learning from rewards") -> Path:
    """Writes out/report.html and returns its path. Raises DachengError where there is no run."""
    story = read_story(Path(out))
    path = Path(out) / REPORT
    with replacing_file(path) as file:
        file.write(render(story, title).encode("utf-8", "backslashreplace"))
    return path


def findings(story: Story) -> list[str]:
    """What a reader should be told in words: how the reward moved, how far the policy went, and, where there is a part
    of weight 0 that knows more ("gold"), whether the reward was over-optimised (Gao et al. 2023)."""
    first, last = _ends(story.sets, "reward")
    told = [f"Reward of a set: {first:.3f} in the first tenth of the run, {last:.3f} in the last."]
    if "objective/kl" in story.sets[-1]:
        told.append(f"KL of an answer from the reference, at the end: {_ends(story.sets, 'objective/kl')[1]:.3f} nats.")
    equal = _ends(story.sets, "frac_reward_zero_std")[1]
    told.append(f"Groups whose answers were all worth the same, at the end: {100 * equal:.0f}%.")
    if "tools/call_frequency" in story.sets[-1]:
        first, last = _ends(story.sets, "tools/call_frequency")
        told.append(
            f"Answers with a call of a tool: {first:.0%} in the first tenth of the run, {last:.0%} in the last."
        )
    gold = [line["rewards/gold/mean"] for line in story.sets if "rewards/gold/mean" in line]
    if len(gold) >= 10:
        smooth = _smoothed(gold)
        best = max(range(len(smooth)), key=smooth.__getitem__)
        if smooth[best] - smooth[-1] > 0.02 * max(1e-9, max(smooth) - min(smooth)) and best < 0.9 * len(smooth):
            told.append(
                f"Over-optimised: the gold reward was best at set {best} ({smooth[best]:.3f}) and is {smooth[-1]:.3f} "
                "now, while the reward went on. Stop there, or raise kl_coef."
            )
    if story.before is not None and story.after is not None and len(story.before.rewards) > 1:
        told.append(
            f"Held out: {_said(story.before.mean_reward())} before, {_said(story.after.mean_reward())} after; the "
            f"answer after is worth more in {_said(win_rate(story.after, story.before))} of draws (ties count half)."
        )
    return told


def render(story: Story, title: str) -> str:
    """The page."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in story.notes)
    charts = "".join(f"<div>{chart}</div>" for chart in _charts(story) if chart)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><ul>{notes}</ul><div class=charts>{charts}</div>{_samples(story)}</html>\n"
    )


def _charts(story: Story) -> list[str]:
    sets = story.sets
    parts = sorted({name for line in sets for name in line if name.startswith("rewards/") and name.endswith("/mean")})
    rewards = {"reward": _by_step(sets, "reward")}
    if len(parts) > 1:
        rewards |= {name.split("/")[1]: _by_step(sets, name) for name in parts}
    against = [(line["objective/kl"], line["reward"]) for line in sets if {"objective/kl", "reward"} <= line.keys()]
    entropy = [
        (line["step"], value)
        for line in story.steps
        for name, value in line.get("metrics", {}).items()
        if name.rpartition(".")[2] == "entropy" and isinstance(value, float)
    ]
    gap = "sampling/sampling_logp_difference/max"
    return [
        curves(rewards, x_label="step", y_label="reward"),
        curves({"policy": against}, x_label="KL of an answer (nats)", y_label="reward"),
        curves({"all": _by_step(sets, "completions/mean_length"),
                "ended": _by_step(sets, "completions/mean_terminated_length")},
               x_label="step", y_label="tokens of an answer"),
        curves({"entropy": entropy}, x_label="step", y_label="entropy of a token (nats)"),
        curves({"equal groups": _by_step(sets, "frac_reward_zero_std"),
                "cut off": _by_step(sets, "completions/clipped_ratio")}, x_label="step", y_label="share"),
        curves({"largest": _by_step(sets, gap)}, x_label="step", y_label="sampler and trainer apart (nats)"),
    ]  # fmt: skip


def _samples(story: Story) -> str:
    before, after = story.before, story.after
    if before is None or after is None:
        return ""
    rows = []
    for prompt, old, new, r0, r1 in zip(before.prompts, before.texts, after.texts, before.rewards, after.rewards):
        kind = "better" if r1[0] > r0[0] else "worse" if r1[0] < r0[0] else ""
        cells = [prompt, old[0], f"{r0[0]:.3g}", new[0], f"{r1[0]:.3g}"]
        rows.append(f"<tr class='{kind}'>" + "".join(f"<td><pre>{escape(c)}</pre></td>" for c in cells) + "</tr>")
    head = "<tr><th>prompt<th>before<th>reward<th>after<th>reward</tr>"
    return f"<h2>Answers with the same draws</h2><table>{head}{''.join(rows[:MAX_SAMPLES])}</table>"


def _by_step(lines: Sequence[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(float(line["step"]), float(line[name])) for line in lines if name in line]


def _ends(lines: Sequence[dict[str, Any]], name: str) -> tuple[float, float]:
    """Means over the first and the last tenth."""
    found = [float(line[name]) for line in lines if name in line] or [math.nan]
    some = max(1, len(found) // 10)
    return math.fsum(found[:some]) / some, math.fsum(found[-some:]) / some


def _smoothed(values: Sequence[float]) -> list[float]:
    width = max(1, len(values) // 10)
    return [math.fsum(values[max(0, i - width) : i + 1]) / len(values[max(0, i - width) : i + 1])
            for i in range(len(values))]  # fmt: skip


def _said(interval: Interval) -> str:
    return f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        return [parse_json(line) for line in path.read_bytes().splitlines() if line.strip()]
    except ValueError as error:
        raise DachengError(f"{path} is no log: {error}", field="path", value=str(path)) from None


__all__ = ["REPORT", "Story", "findings", "read_story", "render", "write_report"]
