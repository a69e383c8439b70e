"""The knobs of training on conversations: an adapter, or the weights themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dacheng import recipes
from dacheng.checks import above_zero, at_least_one, says_how_long
from dacheng.errors import UsageError
from dacheng.nn.lora_config import ALL_LINEAR, LoRAConfig
from dacheng.train.budget import Budget
from dacheng.train.config import TrainConfig
from dacheng.train.optimizers import OptimizerConfig
from dacheng.train.schedules import ScheduleConfig

_FREE: dict[str, Any] = {"free": True}  # may change between a checkpoint and its resume: it moves no weight


@dataclass(frozen=True, kw_only=True)
class ChatTrainConfig:
    """What both have. Raises UsageError for values that make no run.

    layers: train only the top n blocks: the gradient stops below them, and what the blocks below compute needs no
    memory for it; null for all. lr: at the peak of the schedule. warmup: steps when at least 1, else a share of the
    run. final: share of lr that the end reaches. How long: the smallest of steps, epochs and seconds; seconds (of
    steps) become a number of steps once, by the speed measured here. batch_tokens: of a step, in rows of row_tokens,
    into which whole conversations are packed; a longer conversation is dropped and counted. learn: all of the
    assistant's turns, or the last of each conversation. neftune: size of the noise on the embeddings (see
    objectives.neftune), 0 for none. share_beginnings: conversations that begin alike (questions about one text) go into
    a row with their beginning once: the same gradient for less work. held_out_rows: of the held out examples, for the
    losses before and after. threads: null leaves torch's setting.
    """

    layers: int | None = None
    lr: float = 3e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.1
    final: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    batch_tokens: int = 512
    row_tokens: int = 512
    seed: int = 1
    learn: Literal["all", "last"] = "all"
    neftune: float = 0.0
    share_beginnings: bool = True
    held_out_rows: int = field(default=4, metadata=_FREE)
    save_every: int = field(default=20, metadata=_FREE)
    threads: int | None = field(default=None, metadata=_FREE)

    def __post_init__(self) -> None:
        says_how_long(self, "steps", "epochs", "seconds")
        above_zero(self, "epochs", "seconds")
        at_least_one(self, "row_tokens", "batch_tokens", "layers", "held_out_rows")
        if self.batch_tokens % self.row_tokens:
            raise UsageError(
                f"not a multiple of row_tokens ({self.row_tokens})", field="batch_tokens", value=self.batch_tokens,
                remedy=f"for example {max(1, self.batch_tokens // self.row_tokens) * self.row_tokens}",
            )  # fmt: skip
        if not 0 <= self.neftune < float("inf"):
            raise UsageError("no such noise", field="neftune", value=self.neftune, remedy="0 for none; 5 is usual")
        if self.learn not in ("all", "last"):
            raise UsageError("unknown choice", field="learn", value=self.learn, remedy="all or last")
        self.trainer(1.0)  # its own checks, before anything is loaded

    @property
    def batch_rows(self) -> int:
        return self.batch_tokens // self.row_tokens

    def trainer(self, steps_per_epoch: float) -> TrainConfig:
        """The one trainer's settings: float32, and the budget."""
        limits = [] if self.steps is None else [self.steps]
        if self.epochs is not None:
            limits.append(max(1, round(self.epochs * steps_per_epoch)))
        budget = Budget() if self.seconds is None else Budget(minutes=self.seconds / 60)
        return TrainConfig(
            steps=min(limits, default=None), budget=budget, seed=self.seed, clip_norm=self.clip_norm, precision="fp32",
            optimizer=OptimizerConfig(lr=self.lr, weight_decay=self.weight_decay, betas=(0.9, 0.99)),
            schedule=ScheduleConfig(kind=self.schedule, warmup=self.warmup, final=self.final),
            threads=self.threads, save_every=self.save_every,
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """The fields that decide the adapter, as plain data."""
        return recipes.identity(self)


@dataclass(frozen=True, kw_only=True)
class AdaptTrainConfig(ChatTrainConfig):
    """Of an adapter. Raises UsageError for values that make no run.

    rank, alpha, targets, dropout, use_rslora, use_dora: as in LoRAConfig. base_memory: "fast" trains around float32
    weights, "small" around a GGUF file's packed ones, made floats anew whenever they are used: slower, with less
    memory. snapshot_every: steps between copies of the adapter in training/snapshot, for whoever wants to try it
    meanwhile; null for none. The defaults are what did best in minutes on two cores (docs/lab-notes/finetuning.md).
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    layers: int | None = 12
    dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    lr: float = 1.5e-3
    base_memory: Literal["fast", "small"] = "fast"
    snapshot_every: int | None = field(default=None, metadata=_FREE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.snapshot_every is not None and self.snapshot_every < 1:
            raise UsageError("must be at least 1", field="snapshot_every", value=self.snapshot_every,
                             remedy="raise it, or leave it out")  # fmt: skip
        _ = self.lora  # its own checks

    @property
    def lora(self) -> LoRAConfig:
        return LoRAConfig(
            rank=self.rank, alpha=self.alpha, targets=self.targets, dropout=self.dropout, use_rslora=self.use_rslora,
            use_dora=self.use_dora,
        )  # fmt: skip
