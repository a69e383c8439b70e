"""How far a run is, for whoever watches: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import IO, TYPE_CHECKING, Any

from dacheng.errors import UsageError
from dacheng.train.callbacks import Callback

if TYPE_CHECKING:
    from dacheng.train.report import StepReport, TrainResult
    from dacheng.train.trainer import Trainer

_SMOOTHING = 0.9  # of the exponential mean of speed and loss: about ten steps


class Progress(Callback):
    """step/total, loss, learning rate, tokens/s, MFU and time left (of the steps, or of max_minutes if less).

    MFU is the share of this machine's measured matmul peak (dacheng.machine) in the computing format; it is left out
    when the machine was not measured or the model has no FLOP formula. file: where to write; a bar only on a terminal.
    """

    def __init__(self, file: IO[str] | None = None, every_s: float = 10.0) -> None:
        self.file = sys.stderr if file is None else file
        self.every_s = every_s
        self._bar: Any = None
        self._task: Any = None
        self._printed = float("-inf")
        self._loss: float | None = None
        self._seconds: float | None = None  # of a step, smoothed
        self._peak_flops: float | None = None
        self._clock_left: float | None = None  # seconds that max_minutes leaves

    def on_start(self, trainer: Trainer) -> None:
        self._peak_flops = _peak_flops(trainer)
        self._note_clock(trainer)
        if trainer.resumed_from is not None:
            self._print(f"going on from step {trainer.resumed_from}")
        for line in trainer.budget.basis:
            self._print(line)
        if self._clock_left is not None:
            self._print(f"{_clock(self._clock_left)} at most")
        if self.file.isatty():
            self._start_bar(trainer)

    def _start_bar(self, trainer: Trainer) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=Console(file=self.file), refresh_per_second=4)
        self._task = self._bar.add_task("", total=trainer.steps, completed=trainer.state.step)
        self._bar.start()

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        self._loss = _smooth(self._loss, report.loss)
        self._seconds = _smooth(self._seconds, report.seconds)
        self._note_clock(trainer)
        if self._bar is not None:
            self._bar.update(self._task, completed=report.step, description=self.describe(report))
            return
        now = time.monotonic()
        if now - self._printed >= self.every_s or report.step == report.total_steps:
            self._printed = now
            of = "" if self._clock_decides(report) else f"/{report.total_steps}"
            self._print(f"step {report.step}{of}  {self.describe(report)}")

    def _note_clock(self, trainer: Trainer) -> None:
        limit = trainer.config.max_minutes
        self._clock_left = None if limit is None else 60 * limit - trainer.state.wall_s

    def _steps_left_s(self, report: StepReport) -> float:
        return (self._seconds or report.seconds) * (report.total_steps - report.step)

    def _clock_decides(self, report: StepReport) -> bool:
        """Whether the wall clock ends the run before its last step."""
        return self._clock_left is not None and self._clock_left < self._steps_left_s(report)

    def describe(self, report: StepReport) -> str:
        """The figures of a step in one line."""
        seconds = self._seconds or report.seconds
        parts = [f"loss {self._loss if self._loss is not None else report.loss:.4f}"]
        if report.lr:
            parts.append(f"lr {max(report.lr.values()):.2e}")
        if report.tokens and seconds > 0:
            parts.append(f"{report.tokens / seconds:,.0f} tok/s")
        if self._peak_flops and report.flops and seconds > 0:
            parts.append(f"MFU {100 * report.flops / seconds / self._peak_flops:.0f}%")
        left = self._steps_left_s(report)
        parts.append(f"{_clock(left if self._clock_left is None else min(left, self._clock_left))} left")
        return "  ".join(parts)

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        figures = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._print(f"step {trainer.state.step}/{trainer.steps}  {figures}")

    def on_message(self, trainer: Trainer, text: str) -> None:
        self._print(text)

    def on_end(self, trainer: Trainer, result: TrainResult) -> None:
        self.close(None)
        loss = "" if result.loss is None else f", loss {result.loss:.4f}"
        self._print(
            f"{result.stopped}: {result.steps} steps, {result.tokens:,} tokens in {_clock(result.wall_s)} "
            f"({result.tokens_per_s:,.0f} tok/s){loss}"
        )
        for count, what in ((result.skipped_steps, "not finite"), (result.empty_steps, "nothing to learn from")):
            if count:
                self._print(f"{count} updates skipped: {what}")

    def close(self, error: BaseException | None) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.file, flush=True)


def _peak_flops(trainer: Trainer) -> float | None:
    """FLOP/s of the machine in the computing format, over all ranks; None where it was not measured."""
    from dacheng.train.collectives import world_size

    if trainer.machine is None:
        return None
    try:
        # Ranks on one machine share its cores: its peak is one machine's, however many ranks there are.
        ranks = 1 if trainer.precision.device.type == "cpu" else world_size()
        return float(trainer.machine.peak_gflops(trainer.precision.dtype)) * 1e9 * ranks
    except UsageError:
        return None


def _smooth(mean: float | None, value: float) -> float:
    return value if mean is None or value != value else _SMOOTHING * mean + (1.0 - _SMOOTHING) * value


def _clock(seconds: float) -> str:
    """7 s, 3:07, 1:02:45."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
