"""The knobs of training a classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dacheng import recipes
from dacheng.checks import above_zero, at_least_one, says_how_long
from dacheng.errors import UsageError
from dacheng.train.budget import Budget
from dacheng.train.config import TrainConfig
from dacheng.train.optimizers import OptimizerConfig
from dacheng.train.schedules import ScheduleConfig

_FREE: dict[str, Any] = {"free": True}  # may change between a checkpoint and its resume: it moves no weight


@dataclass(frozen=True, kw_only=True)
class ClassifierTrainConfig:
    """Raises UsageError for values that make no run.

    pooling, dropout: of the head, see models.classifier. lr: at the peak of a linear schedule, of the encoder; head_lr:
    of the fresh head, which has everything to learn (null: lr). class_weights: "balanced" counts each class alike,
    whatever its size. freeze_embedding: leave the table of words as it is: it is half of a small encoder, and few of
    its rows are met. longest: tokens of a text, null for as many as the encoder was trained on. How long: the smallest
    of epochs, steps and minutes. eval_every: steps between looks at the validation texts, null for the end alone.
    """

    pooling: Literal["pooler", "mean", "cls"] = "pooler"
    dropout: float = 0.1
    lr: float = 1e-4
    head_lr: float | None = 1e-3
    warmup: float = 0.1
    final: float = 0.0
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    freeze_embedding: bool = False
    clip_norm: float | None = 1.0
    batch_rows: int = 32
    micro_batches: int = 1
    longest: int | None = None
    epochs: float | None = 3.0
    steps: int | None = None
    minutes: float | None = None
    seed: int = 1
    eval_every: int | None = field(default=None, metadata=_FREE)
    save_every: int = field(default=200, metadata=_FREE)
    threads: int | None = field(default=None, metadata=_FREE)

    def __post_init__(self) -> None:
        says_how_long(self, "epochs", "steps", "minutes")
        above_zero(self, "epochs", "minutes")
        at_least_one(self, "batch_rows", "micro_batches", "longest", "steps", "eval_every")
        for name, known in (("pooling", ("pooler", "mean", "cls")), ("class_weights", ("none", "balanced"))):
            if getattr(self, name) not in known:
                raise UsageError(
                    "unknown choice", field=name, value=getattr(self, name), remedy="one of " + ", ".join(known)
                )
        _ = self.trainer(1.0)

    def trainer(self, steps_per_epoch: float) -> TrainConfig:
        """The one trainer's settings."""
        limits = [] if self.steps is None else [self.steps]
        if self.epochs is not None:
            limits.append(max(1, round(self.epochs * steps_per_epoch)))
        return TrainConfig(
            steps=min(limits, default=None), seed=self.seed, clip_norm=self.clip_norm, precision="fp32",
            budget=Budget() if self.minutes is None else Budget(minutes=self.minutes),
            optimizer=OptimizerConfig(
                lr=self.lr, head_lr=self.head_lr, weight_decay=self.weight_decay, betas=(0.9, 0.999)
            ),
            schedule=ScheduleConfig(kind="linear", warmup=self.warmup, final=self.final),
            threads=self.threads, save_every=self.save_every,
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """The fields that decide the weights, as plain data."""
        return recipes.identity(self)
