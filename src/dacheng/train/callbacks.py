"""What happens around the steps: evaluation, early stop, the ledger. The logs are in logs.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from dacheng.errors import UsageError
from dacheng.ledger import Entry, Ledger
from dacheng.train.interrupts import Interrupted

if TYPE_CHECKING:
    from dacheng.train.report import StepReport, TrainResult
    from dacheng.train.trainer import Trainer


class Callback:
    """Does nothing at every occasion; override what you need. Runs on rank 0 only, unless every_rank.

    The order is that of the trainer's list. `state_dict` is called just before a checkpoint is written: what must not
    be behind the checkpoint (a log's file) is synced there. State is plain JSON data.
    """

    every_rank = False

    @property
    def name(self) -> str:
        """The key of its state in a checkpoint."""
        return type(self).__name__

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step, after a resume: trainer.state.step steps are done."""

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        """After each step, before its checkpoint."""

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """After trainer.publish: some callback has measured something."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """After a checkpoint was written."""

    def on_message(self, trainer: Trainer, text: str) -> None:
        """Something for the user to read, such as a sample."""

    def on_end(self, trainer: Trainer, result: TrainResult) -> None:
        """After the last step and its checkpoint; not when the run fails or is interrupted."""

    def close(self, error: BaseException | None) -> None:
        """Last of all, however the run ended: release what you hold."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """With what state_dict gave, before on_start."""


def is_due(trainer: Trainer, every: int | None) -> bool:
    """At multiples of `every`, and after the last step, be it the last of the budget or of the wall clock."""
    return (every is not None and trainer.state.step % every == 0) or trainer.at_end


class Evaluate(Callback):
    """Every `every` steps, None for never, and at the end, publishes function(model) -> {metric: value} under
    "prefix/metric".

    The function sees the model in eval mode and without gradients; its random numbers do not touch those of training.
    """

    def __init__(
        self, function: Callable[[nn.Module], dict[str, float]], every: int | None, prefix: str = "valid"
    ) -> None:
        self.function, self.prefix = function, prefix
        self.every = None if every is None else at_least_one("every", every)

    @property
    def name(self) -> str:
        return f"Evaluate.{self.prefix}"

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if is_due(trainer, self.every):
            with trainer.aside():
                metrics = self.function(trainer.model)
            trainer.publish({f"{self.prefix}/{name}": float(value) for name, value in metrics.items()})


class EarlyStop(Callback):
    """Stops when `metric` (as published: "valid/bits_per_byte") was not better than its best by more than `min_delta`
    for `patience` evaluations in a row. `best` and `best_step` are kept in the checkpoints."""

    def __init__(
        self, metric: str, patience: int = 3, mode: Literal["min", "max"] = "min", min_delta: float = 0.0
    ) -> None:
        if mode not in ("min", "max"):
            raise UsageError("unknown direction", field="mode", value=mode, remedy="min or max")
        self.metric, self.mode, self.min_delta = metric, mode, min_delta
        self.patience = at_least_one("patience", patience)
        self.best: float | None = None
        self.best_step = 0
        self.waited = 0

    @property
    def name(self) -> str:
        return f"EarlyStop.{self.metric}"

    def on_evaluate(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if self.metric not in metrics:
            return
        value = metrics[self.metric]
        sign = 1.0 if self.mode == "min" else -1.0
        if math.isfinite(value) and (self.best is None or sign * (self.best - value) > self.min_delta):
            self.best, self.best_step, self.waited = value, trainer.state.step, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            best = "never finite" if self.best is None else f"{self.best:.6g} at step {self.best_step}"
            trainer.stop(f"early stop: {self.metric} was best {best}, {self.waited} evaluations ago")

    def on_end(self, trainer: Trainer, result: TrainResult) -> None:
        if self.best is None:
            trainer.warn(f"early stop never saw a finite {self.metric}: nothing published it, or it diverged")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]


class LedgerWriter(Callback):
    """Books what steps cost: tokens, FLOPs, skipped ones. Replayed steps are booked again: they were paid twice."""

    def __init__(self, ledger: Ledger, stage: str = "train") -> None:
        self.ledger, self.stage = ledger, stage
        self._measure: AbstractContextManager[Entry] | None = None
        self._entry: Entry | None = None

    def on_start(self, trainer: Trainer) -> None:
        self._measure = self.ledger.measure(self.stage, out=str(trainer.out), first_step=trainer.state.step)
        self._entry = self._measure.__enter__()

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        if self._entry is not None:
            self._entry.add(
                tokens=report.tokens, flops=report.flops, steps=1, skipped_steps=int(report.skipped is not None)
            )

    def close(self, error: BaseException | None) -> None:
        if self._measure is not None:
            measure, self._measure = self._measure, None
            if isinstance(error, Interrupted):  # a stop that was asked for is not a failure
                error = KeyboardInterrupt(error.problem)
            measure.__exit__(None if error is None else type(error), error, None)


def at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise UsageError("must be at least 1", field=name, value=value, remedy="raise it")
    return value
