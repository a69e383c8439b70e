"""What a verb says while it works, on stderr; results go to stdout, as text or as one JSON document."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dacheng.stages.base import Reporter, Task

PLAIN_EVERY_S = 5.0


def reporter() -> Reporter:
    """Bars on a terminal, a line every few seconds anywhere else."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return RichReporter()
    return PlainReporter()


def print_json(value: Any) -> None:
    """One JSON document on stdout. NaN and infinities become strings: it stays JSON."""
    from dacheng.formats.json_files import plain

    print(json.dumps(plain(value), indent=2, ensure_ascii=False))


def use_threads() -> None:
    """One thread per usable core, unless OMP_NUM_THREADS already says how many."""
    from dacheng.machine import set_threads

    if not os.environ.get("OMP_NUM_THREADS"):
        set_threads(None)


class PlainReporter:
    """For logs and pipes."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, description: str, total: float | None = None, unit: str = "") -> Iterator[PlainTask]:
        task = PlainTask(description, total, unit)
        yield task
        if task.shown:
            self.note(f"{description}: done in {time.perf_counter() - task.began:.0f} s")


class PlainTask:
    def __init__(self, description: str, total: float | None, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.began = self._last = time.perf_counter()
        self.completed, self.text, self.shown = 0.0, "", False

    def update(self, completed: float | None = None, *, total: float | None = None, text: str | None = None) -> None:
        self.completed = self.completed if completed is None else completed
        self.total = self.total if total is None else total
        self.text = self.text if text is None else text
        now = time.perf_counter()
        if now - self._last >= PLAIN_EVERY_S:
            self._last, self.shown = now, True
            print(self._line(now - self.began), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        speed = self.completed / seconds
        parts = [f"{self.description}:"]
        if self.total:
            parts.append(f"{100 * self.completed / self.total:.0f}%")
        parts.append(f"{amount(speed, self.unit)}/s")
        if self.total and speed > 0:
            parts.append(f"{duration((self.total - self.completed) / speed)} left")
        return " ".join([*parts, self.text]).rstrip()


class RichReporter:
    """For people."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._progress: Any = None

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, description: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        from rich import progress

        with progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.TaskProgressColumn(),
            _speed_column(unit),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[text]}", markup=False),
            console=self._console,
            transient=True,
            redirect_stdout=False,
        ) as bars:
            yield _RichTask(bars, bars.add_task(description, total=total, text=""))


class _RichTask:
    def __init__(self, bars: Any, number: Any) -> None:
        self._bars, self._number = bars, number

    def update(self, completed: float | None = None, *, total: float | None = None, text: str | None = None) -> None:
        given = {"completed": completed, "total": total, "text": text}
        self._bars.update(self._number, **{name: value for name, value in given.items() if value is not None})


def _speed_column(unit: str) -> Any:
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{amount(task.speed, unit)}/s" if task.speed else "")

    return Speed()


def amount(value: float, unit: str = "") -> str:
    """A number as a person reads it: 12.3k, 4.56M, 1.2 GB."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{' ' if unit else ''}{prefix}{unit}"
    return f"{value:.3g}{' ' if unit else ''}{unit}"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
