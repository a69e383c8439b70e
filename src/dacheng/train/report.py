"""The figures that the trainer hands out: of one step, of the run so far, and of the whole."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dacheng.train.gradients import Totals


@dataclass
class StepReport:
    """One step. step: finished ones, this included. lr: group -> rate, "phase.group" where there are several phases.

    loss: Σ weight · term over all phases. grad_norm: before clipping, the largest of the step's updates. tokens:
    positions of the batches of all ranks. flops: the model's own formula, forward and backward. skipped: why no update
    was made, or None.
    """

    step: int
    total_steps: int
    loss: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    grad_norm: float = 0.0
    lr: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    skipped: str | None = None
    losses: dict[str, float] = field(default_factory=dict)  # by phase

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    def add(self, phase: str, totals: Totals, norm: float, lr: dict[str, float], prefix: str = "") -> None:
        """Adds what one update saw; a later repeat of the same phase replaces the earlier. prefix: of the names."""
        self.losses[phase] = totals.loss
        self.loss = sum(self.losses.values())
        self.terms.update({prefix + name: value for name, value in totals.terms.items()})
        self.metrics.update({prefix + name: value for name, value in totals.metrics.items()})
        self.counts.update({prefix + name: value for name, value in totals.counts.items()})
        self.lr.update({prefix + name: value for name, value in lr.items()})
        self.grad_norm = norm if math.isnan(norm) else max(self.grad_norm, norm)

    def line(self) -> dict[str, Any]:
        """For a log: one flat level of figures, and nested ones where a name may be anything."""
        line: dict[str, Any] = {
            "step": self.step,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "lr": self.lr,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "metrics": self.metrics,
            "counts": self.counts,
        }
        if len(self.terms) > 1:
            line["terms"] = self.terms
        if self.skipped is not None:
            line["skipped"] = self.skipped
        return line


@dataclass
class RunState:
    """How far a run is: saved in every checkpoint. weights_version counts the updates made. seconds are those of the
    steps, wall_s those of everything, both over all resumes. stopped: why the run ended before its last step, for good.
    """

    step: int = 0
    weights_version: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    wall_s: float = 0.0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    empty_steps: int = 0
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    stopped: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunState:
        """The inverse, through JSON, where a loss that is not finite is text."""
        loss = None if values["loss"] is None else float(values["loss"])
        metrics = {name: float(value) for name, value in values["metrics"].items()}
        return cls(**{**values, "loss": loss, "metrics": metrics})


@dataclass
class TrainResult:
    """What `fit` returns. loss: of the last step. metrics: as last published. stopped: "finished", or why earlier.

    seconds: of the steps; wall_s: with evaluation and checkpoints; both over all resumes. skipped_steps had a NaN or an
    infinity; empty_steps had nothing to learn from. resumed_from: the step of the
    checkpoint that this call went on from, None for a fresh start. warnings: everything the user was told.
    """

    steps: int
    tokens: int
    flops: float
    seconds: float
    wall_s: float
    loss: float | None
    metrics: dict[str, float]
    stopped: str
    skipped_steps: int
    empty_steps: int
    resumed_from: int | None
    checkpoint: Path | None
    budget: list[str]
    warnings: list[str]

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0
