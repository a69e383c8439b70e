"""The knobs of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dacheng import recipes
from dacheng.checks import at_least_one
from dacheng.errors import UsageError
from dacheng.train.budget import Budget
from dacheng.train.optimizers import OptimizerConfig
from dacheng.train.schedules import ScheduleConfig

_FREE: dict[str, Any] = {"free": True}  # may change between a checkpoint and its resume: it moves no weight


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Raises UsageError for values that make no run.

    steps, budget: how long; the smallest limit decides. optimizer: of the phases that bring none. clip_norm: largest
    global gradient norm, None for no clipping. precision: auto is bf16 where this machine is fast at it.
    non_finite: what to do on a NaN or an infinity in loss or gradient; ten skipped steps in a row stop the run anyway.
    save_every: steps between checkpoints (the last step is always saved). max_minutes: wall clock, over all resumes, at
    which the run stops with a checkpoint. resume: auto goes on where a checkpoint is, must wants one, never refuses to
    mix with an old one. allow_changes: parts of the recipe (as a refusal names them) that may differ from the
    checkpoint's. threads: None leaves torch's setting.
    """

    steps: int | None = None
    budget: Budget = field(default_factory=Budget)
    seed: int = 1
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clip_norm: float | None = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = field(default="cpu", metadata=_FREE)
    threads: int | None = field(default=None, metadata=_FREE)
    deterministic: bool = field(default=True, metadata=_FREE)
    compile: bool = field(default=False, metadata=_FREE)
    checkpoint_activations: bool = field(default=False, metadata=_FREE)
    non_finite: Literal["skip", "stop"] = "skip"
    save_every: int = field(default=200, metadata=_FREE)
    keep_last: int = field(default=2, metadata=_FREE)
    keep_every: int | None = field(default=None, metadata=_FREE)
    max_minutes: float | None = field(default=None, metadata=_FREE)
    resume: Literal["auto", "never", "must"] = field(default="auto", metadata=_FREE)
    allow_changes: tuple[str, ...] = field(default=(), metadata=_FREE)

    def __post_init__(self) -> None:
        at_least_one(self, "save_every", "keep_last", "keep_every", "steps", "threads")
        for name in ("clip_norm", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError("must be above 0", field=name, value=value, remedy="null for none")
        for name, known in (("resume", ("auto", "never", "must")), ("non_finite", ("skip", "stop"))):
            if getattr(self, name) not in known:
                raise UsageError(
                    "unknown choice", field=name, value=getattr(self, name), remedy="one of " + ", ".join(known)
                )

    def identity(self) -> dict[str, Any]:
        """The fields that decide the weights, as plain data."""
        return recipes.identity(self)
