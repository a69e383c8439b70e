"""Logs of a run: JSON lines always, TensorBoard when asked, and samples of what the model writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from dacheng.errors import MissingExtra
from dacheng.formats.atomic import replacing_file
from dacheng.formats.json_files import plain
from dacheng.train.callbacks import Callback, at_least_one, is_due

if TYPE_CHECKING:
    from dacheng.train.report import StepReport, TrainResult
    from dacheng.train.trainer import Trainer


class JsonlFile:
    """Lines of JSON that each carry a "step". One os.write a line: a killed process tears at most the last."""

    def __init__(self, path: Path, done_steps: int) -> None:
        """Opens for appending, once lines past `done_steps` and torn ones are dropped: a resumed run writes them again.

        The file is rewritten beside and renamed, so a kill here loses nothing.
        """
        self.path = path
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if _step_of(line) <= done_steps]
            if len(kept) < len(lines):
                with replacing_file(path) as file:
                    file.writelines(kept)
        self._handle: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def append(self, line: dict[str, Any]) -> None:
        """NaN and infinities become the strings "nan", "inf" and "-inf": the line stays JSON."""
        assert self._handle is not None, "the log is closed"
        os.write(self._handle, (json.dumps(plain(line), ensure_ascii=False) + "\n").encode())

    def sync(self) -> None:
        if self._handle is not None:
            os.fsync(self._handle)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _step_of(line: bytes) -> float:
    """Infinite for a torn line, which is thereby dropped."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        step = None
    return step if isinstance(step, int) else float("inf")


class FileLog(Callback):
    """Keeps a JSONL file under out: cut back to the resumed step at the start, on disk before each checkpoint."""

    file_name: str

    def __init__(self) -> None:
        self._file: JsonlFile | None = None

    def on_start(self, trainer: Trainer) -> None:
        self._file = JsonlFile(trainer.out / self.file_name, trainer.state.step)

    def state_dict(self) -> dict[str, Any]:
        if self._file is not None:
            self._file.sync()
        return {}

    def close(self, error: BaseException | None) -> None:
        if self._file is not None:
            self._file.close()


class JsonlLog(FileLog):
    """out/train.jsonl: one line a step and one an evaluation. After any number of resumes it holds the steps of the
    uninterrupted run, each once. The trainer adds it by itself."""

    def __init__(self, file_name: str = "train.jsonl") -> None:
        super().__init__()
        self.file_name = file_name

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if self._file is not None:
            self._file.append(report.line())

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if self._file is not None:
            self._file.append({"step": trainer.state.step, "evaluation": metrics})


class Sample(FileLog):
    """Every `every` steps and at the end, shows the text function(model) gives and keeps it in out/samples.jsonl."""

    file_name = "samples.jsonl"

    def __init__(self, function: Callable[[nn.Module], str], every: int) -> None:
        super().__init__()
        self.function, self.every = function, at_least_one("every", every)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if is_due(trainer, self.every) and self._file is not None:
            with trainer.aside():
                text = self.function(trainer.model)
            self._file.append({"step": trainer.state.step, "text": text})
            trainer.say(text)


class TensorBoard(Callback):
    """Scalars for TensorBoard under out/tensorboard. Raises MissingExtra at construction when it is not installed."""

    def __init__(self, every: int = 1) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "logs") from error
        self.every = at_least_one("every", every)
        self._make: Any = SummaryWriter
        self._writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        # purge_step hides what an interrupted run wrote past the checkpoint.
        self._writer = self._make(str(trainer.out / "tensorboard"), purge_step=trainer.state.step + 1)

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if report.step % self.every == 0:
            rates = {f"lr/{name}": rate for name, rate in report.lr.items()}
            terms = {f"terms/{name}": value for name, value in report.terms.items()}
            metrics = {f"metrics/{name}": value for name, value in report.metrics.items()}
            own = {"loss": report.loss, "grad_norm": report.grad_norm, "tokens_per_s": report.tokens_per_s}
            self._write({**own, **terms, **metrics, **rates}, report.step)

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._write(metrics, trainer.state.step)

    def _write(self, scalars: dict[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)

    def state_dict(self) -> dict[str, Any]:
        if self._writer is not None:
            self._writer.flush()
        return {}

    def on_end(self, trainer: Trainer, result: TrainResult) -> None:
        self._write({f"final/{name}": value for name, value in result.metrics.items()}, result.steps)

    def close(self, error: BaseException | None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
