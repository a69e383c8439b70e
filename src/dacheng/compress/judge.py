"""Two models side by side: bytes on disk, resident memory, perplexity and task score with intervals, speed. One table
for whatever was done between them, and a sentence that says whether it was worth it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from dacheng.compress.child import measure_in_child
from dacheng.compress.tables import aligned
from dacheng.errors import UsageError
from dacheng.evaluate.intervals import Interval, bootstrap_ratio, paired_difference, wilson
from dacheng.ledger import Ledger

Task = Path | Callable[[Path], Interval]
"""A file of questions (dacheng.compress.choices), or what scores the model in a directory."""
SPEED_SHARE = 1500  # of the progress: a process that measures speed takes as long as that many scored tokens, about


@dataclass(frozen=True, slots=True)
class Measured:
    """One model. resident_bytes: of a fresh process that has loaded and used it, interpreter and libraries included;
    model_bytes: what the model added to that. Speeds in tokens a second, one text at a time."""

    path: str
    disk_bytes: int
    resident_bytes: int | None = None
    model_bytes: int | None = None
    perplexity: Interval | None = None
    bits_per_byte: Interval | None = None
    task: Interval | None = None
    prefill: float | None = None
    decode: float | None = None
    executor: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """`perplexity_ratio`: after over before, with the interval of the difference over the same stretches of text;
    None where the two do not cut the text into the same tokens (then bits per byte compare)."""

    before: Measured
    after: Measured
    perplexity_ratio: Interval | None = None
    threads: int = 1
    text_tokens: int = 0
    task_name: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        """Rows of what was measured: before, after, and after over before."""
        return aligned([("", "before", "after", "after / before"), *self._rows()])

    def sentence(self) -> str:
        """Whether it was worth it, from the figures alone: what got smaller or faster, and what it cost."""
        gains, losses = self._gains()
        cost, harmed = self._cost()
        if not gains:
            what = ", and ".join(losses) or "it is neither smaller nor faster"
            return f"Not worth it: {what}{'; ' + cost if cost else ''}."
        told = f"{' and '.join(gains)}{'; ' + cost if cost else ''}"
        if losses:
            told += f"; but {' and '.join(losses)}"
        if harmed:
            return f"Only where bytes or time count more than quality: {told}."
        return f"Worth it: {told}."

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sentence": self.sentence()}

    def _rows(self) -> list[tuple[str, str, str, str]]:
        a, b = self.before, self.after
        rows = [_row("bytes on disk", a.disk_bytes, b.disk_bytes, _megabytes)]
        if a.resident_bytes and b.resident_bytes:
            rows.append(_row("resident memory", a.resident_bytes, b.resident_bytes, _megabytes))
        if a.model_bytes and b.model_bytes:
            rows.append(_row("  of it the model's", a.model_bytes, b.model_bytes, _megabytes))
        if a.perplexity and b.perplexity:
            ratio = "" if self.perplexity_ratio is None else _interval(self.perplexity_ratio, 4)
            rows.append(("perplexity", _interval(a.perplexity), _interval(b.perplexity), ratio))
        if a.bits_per_byte and b.bits_per_byte and self.perplexity_ratio is None:
            ratio = f"{b.bits_per_byte.estimate / a.bits_per_byte.estimate:.4f}"
            rows.append(("bits per byte", _interval(a.bits_per_byte, 4), _interval(b.bits_per_byte, 4), ratio))
        if a.task and b.task:
            points = 100 * (b.task.estimate - a.task.estimate)
            rows.append((self.task_name or "task", _share(a.task), _share(b.task), f"{points:+.1f} points"))
        for name in ("prefill", "decode"):
            one, other = getattr(a, name), getattr(b, name)
            if one and other:
                rows.append(_row(f"{name} tok/s", one, other, "{:.1f}".format))
        if a.executor or b.executor:
            rows.append(("executor", a.executor, b.executor, ""))
        return rows

    def _gains(self) -> tuple[list[str], list[str]]:
        """What became at least 5 % better, and what became that much worse."""
        gains, losses = [], []
        for name, attribute, smaller in (
            ("on disk", "disk_bytes", True), ("in memory", "model_bytes", True),
            ("prefill", "prefill", False), ("decode", "decode", False),
        ):  # fmt: skip
            one, other = getattr(self.before, attribute), getattr(self.after, attribute)
            if not one or not other:
                continue
            ratio = one / other if smaller else other / one
            kind = ("smaller", "larger") if smaller else ("faster", "slower")
            if ratio >= 1.05:
                gains.append(f"{ratio:.2g} times {kind[0]} {name}" if smaller else f"{name} {ratio:.2g} times as fast")
            elif ratio <= 1 / 1.05:
                losses.append(f"{1 / ratio:.2g} times {kind[1]} {name}" if smaller else f"{name} is {1 / ratio:.2g} "
                              "times slower")  # fmt: skip
        return gains, losses

    def _cost(self) -> tuple[str, bool]:
        """What quality changed by, and whether that is much: over 10 % of perplexity, a task that is surely worse."""
        told, harmed = [], False
        if (ratio := self.perplexity_ratio) is not None:
            change = 100 * (ratio.estimate - 1)
            within = ratio.low <= 1 <= ratio.high
            told.append("perplexity as before, within the interval" if within else f"perplexity {change:+.1f} %")
            harmed = ratio.estimate > 1.1
        elif self.before.bits_per_byte and self.after.bits_per_byte:
            change = 100 * (self.after.bits_per_byte.estimate / self.before.bits_per_byte.estimate - 1)
            told.append(f"bits per byte {change:+.1f} %")
            harmed = change > 3
        if self.before.task and self.after.task:
            points = 100 * (self.after.task.estimate - self.before.task.estimate)
            told.append(f"{self.task_name or 'the task'} {points:+.1f} points")
            harmed = harmed or self.after.task.high < self.before.task.low
        return ", ".join(told), harmed


def judge(
    before: Path,
    after: Path,
    *,
    text: Path | None,
    task: Task | None = None,
    speed: bool = True,
    ledger: Ledger | None = None,
    tokens: int = 8192,
    window: int = 512,
    rounds: int = 3,
    kv_dtype: str | None = None,
    progress: Callable[..., None] | None = None,
) -> Comparison:
    """Measures two models (directories or .gguf files), each in processes of its own.

    text: UTF-8 (or .gz), scored in stretches of `window` tokens, `tokens` of them at most; None leaves perplexity out.
    task: a file of questions, or a callable from the model's path to its score. speed: prefill of 512 tokens and decode
    of one text, `rounds` times in turn (each process measures once; medians are told). kv_dtype: of the model after.
    ledger: each measurement becomes an entry. progress(completed, total=, text=), as `update` of a stage's Task. Raises
    UsageError where there is nothing to measure, and the DachengError that a measurement ended with.
    """
    if rounds < 1:
        raise UsageError("must be at least 1", field="rounds", value=rounds, remedy="3 is usual")
    models = {"before": Path(before), "after": Path(after)}
    for model in models.values():
        disk_bytes(model)  # is it there?
    check_texts(text, task)
    kv = {"before": None, "after": kv_dtype}
    what = ["memory", *(["perplexity"] if text is not None else []), *(["task"] if isinstance(task, Path) else [])]
    options = {"tokens": tokens, "window": window, "text": text, "choices": task if isinstance(task, Path) else None}
    rounds = rounds if speed else 0
    share = tokens if len(what) > 1 else SPEED_SHARE
    processes = _Processes(ledger or Ledger(None), progress, 2 * (share + rounds * SPEED_SHARE))
    found: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        same_part = {"text_bytes": found["before"].get("text_bytes")} if found else {}
        found[name] = processes.run(name, model, share, options | same_part | {"what": what, "kv_dtype": kv[name]})
    speeds: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            asked = {"what": ["speed"], "kv_dtype": kv[name]}
            speeds[name].append(processes.run(name, model, SPEED_SHARE, asked))
    measured = [_measured(model, found[name], speeds[name], task) for name, model in models.items()]
    pair = [one.get("windows") for one in found.values()]
    return Comparison(
        measured[0], measured[1], _perplexity_ratio(*pair), found["before"]["threads"],
        int(sum(pair[0]["tokens"])) if pair[0] else 0,
        task.stem if isinstance(task, Path) else getattr(task, "name", "") if task is not None else "",
    )  # fmt: skip


class _Processes:
    """One after the other, each measuring one model; `progress` hears of them as of one piece of work."""

    def __init__(self, ledger: Ledger, progress: Callable[..., None] | None, total: float) -> None:
        self.ledger, self.progress, self.total, self.done = ledger, progress, total, 0.0

    def run(self, name: str, model: Path, share: float, options: dict[str, Any]) -> dict[str, Any]:
        """share: of the total, that this measurement is."""

        def heard(done: int, of: int, what: str) -> None:
            if self.progress is not None:
                counted = f" {done} of {of}" if of > 1 else ""
                self.progress(self.done + share * done / of, total=self.total, text=f"{name}: {what}{counted}")

        heard(0, 1, "+".join(options["what"]))
        with self.ledger.measure("judge", model=str(model), what="+".join(options["what"])):
            found = measure_in_child(model, options, heard)
        self.done += share
        return found


def check_texts(text: Path | None, task: Task | None = None) -> None:
    """Raises UsageError for a text or a file of questions that can't be read: now, not after minutes of work."""
    from dacheng.compress.choices import read_choices
    from dacheng.compress.measure import read_text

    if text is not None:
        read_text(text)
    if isinstance(task, Path):
        read_choices(task)


def disk_bytes(path: Path) -> int:
    """Of a file, or of all files of a directory."""
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        raise UsageError("there is no such model", field="model", value=str(path), remedy="check the path")
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _measured(model: Path, one: dict[str, Any], many: list[dict[str, Any]], task: Task | None) -> Measured:
    windows = one.get("windows")
    hits = one.get("hits")
    score = wilson(sum(hits), len(hits)) if hits else task(model) if callable(task) else None
    speeds = {name: [found[name] for found in many if name in found] for name in ("prefill", "decode")}
    return Measured(
        str(model),
        disk_bytes(model),
        one.get("resident_bytes"),
        one.get("model_bytes"),
        _exp(bootstrap_ratio(windows["nats"], windows["tokens"])) if windows else None,
        bootstrap_ratio([n / math.log(2) for n in windows["nats"]], windows["bytes"]) if windows else None,
        score,
        median(speeds["prefill"]) if speeds["prefill"] else None,
        median(speeds["decode"]) if speeds["decode"] else None,
        one.get("executor", ""),
        tuple(one["notes"]),
    )


def _perplexity_ratio(before: dict[str, Any] | None, after: dict[str, Any] | None) -> Interval | None:
    if before is None or after is None or before["tokens"] != after["tokens"] or before["bytes"] != after["bytes"]:
        return None
    return _exp(paired_difference(after["nats"], before["nats"], before["tokens"]))


def _exp(interval: Interval) -> Interval:
    estimate, low, high = (math.exp(min(value, 700.0)) for value in (interval.estimate, interval.low, interval.high))
    return Interval(estimate, low, high, interval.level, interval.n)


def _row(name: str, before: float, after: float, shown: Callable[[float], str]) -> tuple[str, str, str, str]:
    return name, shown(before), shown(after), f"{after / before:.2f}"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.1f} MB"


def _interval(interval: Interval, digits: int = 2) -> str:
    return f"{interval.estimate:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _share(interval: Interval) -> str:
    return f"{100 * interval.estimate:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
