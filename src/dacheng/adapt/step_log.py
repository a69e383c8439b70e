"""The log of a training's steps: appended to and never cut, so that after a kill it shows the repeated steps twice."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from dacheng.adapt.tail import STEP_LOG, read_log
from dacheng.formats.json_files import plain
from dacheng.meters import EnergyMeter
from dacheng.prices import Prices
from dacheng.train.callbacks import Callback

if TYPE_CHECKING:
    from dacheng.train.report import StepReport
    from dacheng.train.trainer import Trainer


class StepLog(Callback):
    """out/log.jsonl. A start: {"start": n, "from_step", "steps", "basis"}; a step: {"start", "step", "loss", "tokens",
    "targets", "seconds", "joules", "joules_kind", "lr", "grad_norm"}. Floats are written so that they read back equal.

    joules: of the CPU packages where they can be read ("measured"), else the stated watts times seconds ("estimated").
    """

    def __init__(self) -> None:
        self._handle: int | None = None
        self._meter: EnergyMeter | None = None
        self._start, self._joules = 0, 0.0
        self._watts = 0.0

    def on_start(self, trainer: Trainer) -> None:
        path = trainer.out / STEP_LOG
        self._start = sum("steps" in line for line in read_log(path))
        self._handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._handle).st_size
        if size and os.pread(self._handle, 1, size - 1) != b"\n":
            os.write(self._handle, b"\n")  # a line that a kill has torn stays one of its own
        self._meter, self._watts = EnergyMeter(), Prices.load(None).watts
        self._joules = self._meter.joules() or 0.0
        self._append(
            {
                "start": self._start, "from_step": trainer.state.step, "steps": trainer.steps,
                "basis": list(trainer.budget.basis),
            }
        )  # fmt: skip

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        measured = None if self._meter is None else self._meter.joules()
        joules = report.seconds * self._watts if measured is None else measured - self._joules
        self._joules = measured or 0.0
        line = {
            "start": self._start, "step": report.step, "loss": report.loss, "tokens": report.tokens,
            "targets": int(report.counts.get("next_token", 0)), "seconds": report.seconds, "joules": joules,
            "joules_kind": "estimated" if measured is None else "measured", "lr": max(report.lr.values(), default=0.0),
            "grad_norm": report.grad_norm,
        }  # fmt: skip
        self._append(line if report.skipped is None else {**line, "skipped": report.skipped})

    def _append(self, line: dict[str, Any]) -> None:
        """One write a line: a kill tears at most the last."""
        if self._handle is not None:
            os.write(self._handle, (json.dumps(plain(line), ensure_ascii=False) + "\n").encode())

    def close(self, error: BaseException | None) -> None:
        if self._meter is not None:
            self._meter.stop()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
