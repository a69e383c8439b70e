"""Classifiers side by side: bytes, parameters, accuracy with intervals, and milliseconds of one text at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dacheng.compress.tables import aligned
from dacheng.data.labelled import LabelledTexts
from dacheng.evaluate.classification import ClassificationReport, predict, report
from dacheng.evaluate.intervals import Interval, paired_difference
from dacheng.formats.classifiers import load_classifier
from dacheng.formats.shards import weight_files

_WARM = 10  # texts that are not counted


@dataclass(frozen=True, slots=True)
class JudgedClassifier:
    """disk_bytes: of the weights. p50_ms, p95_ms: of one text at a time, tokenizing included."""

    path: str
    disk_bytes: int
    parameters: int
    accuracy: Interval
    macro_f1: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class ClassifierComparison:
    """difference: of the two accuracies on the same texts, after less before, with its interval."""

    before: JudgedClassifier
    after: JudgedClassifier
    difference: Interval
    threads: int

    def table(self) -> str:
        a, b = self.before, self.after
        right = max(a.accuracy.estimate, 1e-9)
        rows = [
            ("", "before", "after", "after / before"),
            ("weights on disk", f"{a.disk_bytes / 1e6:.1f} MB", f"{b.disk_bytes / 1e6:.1f} MB",
             f"{b.disk_bytes / a.disk_bytes:.2f}"),
            ("parameters", f"{a.parameters:,}", f"{b.parameters:,}", f"{b.parameters / a.parameters:.2f}"),
            ("accuracy", _share(a.accuracy), _share(b.accuracy), f"{b.accuracy.estimate / right:.3f}"),
            ("macro F1", f"{a.macro_f1:.4f}", f"{b.macro_f1:.4f}", f"{b.macro_f1 / max(a.macro_f1, 1e-9):.3f}"),
            ("one text, p50", f"{a.p50_ms:.2f} ms", f"{b.p50_ms:.2f} ms", f"{b.p50_ms / a.p50_ms:.2f}"),
            ("one text, p95", f"{a.p95_ms:.2f} ms", f"{b.p95_ms:.2f} ms", f"{b.p95_ms / a.p95_ms:.2f}"),
        ]  # fmt: skip
        return aligned(rows)

    def sentence(self) -> str:
        """Whether it was worth it, from the figures alone."""
        size, speed = self.after.disk_bytes / self.before.disk_bytes, self.before.p50_ms / self.after.p50_ms
        gains = [f"{size:.0%} of the bytes"] if size < 0.95 else []
        gains += [f"{speed:.1f} times as fast"] if speed > 1.05 else []
        low, high = self.difference.low, self.difference.high
        cost = f"accuracy changes by {100 * self.difference.estimate:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
        if not gains:
            return f"Not worth it: it is neither smaller nor faster; {cost}."
        if high < 0:
            return f"Only where bytes or time count more than accuracy: {' and '.join(gains)}; {cost}."
        return f"Worth it: {' and '.join(gains)}; {cost}."

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sentence": self.sentence()}


def judge_classifiers(before: Path, after: Path, texts: LabelledTexts, *, timed: int = 200) -> ClassifierComparison:
    """Both on all `texts`, and the first `timed` of them one at a time, the two taking turns. Raises DachengError for
    labels that one of them does not have."""
    import torch

    loaded = [load_classifier(path) for path in (before, after)]
    reports: list[ClassificationReport] = []
    calls: dict[str, Callable[[str], Any]] = {}
    for number, one in enumerate(loaded):
        names = one.model.labels
        reports.append(report(predict(one.model, one.tokenizer, texts.texts).argmax(-1), texts.numbers(names), names))
        calls[str(number)] = lambda text, one=one: predict(one.model, one.tokenizer, [text])  # type: ignore[misc]
    speeds = latencies(calls, texts.texts[:timed])
    sides = [
        JudgedClassifier(
            str(path), disk_bytes(path), one.model.params()["total"], found.accuracy, found.macro_f1,
            *speeds[str(number)],
        )
        for number, (path, one, found) in enumerate(zip((before, after), loaded, reports))
    ]  # fmt: skip
    difference = paired_difference(reports[1].right, reports[0].right)
    return ClassifierComparison(sides[0], sides[1], difference, torch.get_num_threads())


def latencies(calls: Mapping[str, Callable[[str], Any]], texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Milliseconds at p50 and p95 of each call on one text at a time; at each text the calls take turns, so that what
    else the machine does falls on all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for text in texts[:_WARM]:
            call(text)
    for text in texts:
        for name, call in calls.items():
            began = time.perf_counter()
            call(text)
            seconds[name].append(time.perf_counter() - began)
    return {
        name: (1000 * float(np.quantile(found, 0.5)), 1000 * float(np.quantile(found, 0.95)))
        for name, found in seconds.items()
    }  # fmt: skip


def disk_bytes(directory: Path) -> int:
    return sum((directory / name).stat().st_size for name in weight_files(directory))


def _share(interval: Interval) -> str:
    return f"{interval.estimate:.4f} [{interval.low:.4f}, {interval.high:.4f}]"
