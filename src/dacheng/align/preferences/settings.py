"""The knobs of learning from preferences: what the losses on pairs and the reward model share, and what is theirs."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from dacheng import recipes
from dacheng.adapt.settings import AdaptTrainConfig
from dacheng.checks import above_zero, at_least_one, says_how_long
from dacheng.errors import UsageError
from dacheng.nn.lora_config import ALL_LINEAR
from dacheng.objectives.preference import PreferenceConfig
from dacheng.train.budget import Budget
from dacheng.train.config import TrainConfig
from dacheng.train.optimizers import OptimizerConfig
from dacheng.train.schedules import ScheduleConfig

_FREE: dict[str, Any] = {"free": True}  # may change between a checkpoint and its resume: it moves no weight
_LOSS = tuple(f.name for f in fields(PreferenceConfig))


@dataclass(frozen=True, kw_only=True)
class PairTrainConfig:
    """What both have. Raises UsageError for values that make no run.

    rank, alpha, targets, dropout: of LoRA; rank 0 trains the weights themselves. layers: only the top n blocks, null
    for all. lr: at the peak of the schedule. warmup: steps when at least 1, else a share of the run. How long: the
    smallest of steps, epochs and seconds (which become steps once, by the speed measured here). batch_pairs: of a step,
    in micro_batches parts. max_tokens: a pair with a longer row is dropped and counted. eval_every: steps between
    measurements on the held-out pairs, null for before and after alone; eval_pairs: how many of them.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    layers: int | None = 12
    dropout: float = 0.0
    lr: float = 3e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    batch_pairs: int = 8
    micro_batches: int = 1
    max_tokens: int = 512
    seed: int = 1
    eval_every: int | None = field(default=None, metadata=_FREE)
    eval_pairs: int = field(default=64, metadata=_FREE)
    save_every: int = field(default=20, metadata=_FREE)
    threads: int | None = field(default=None, metadata=_FREE)

    def __post_init__(self) -> None:
        says_how_long(self, "steps", "epochs", "seconds")
        above_zero(self, "epochs", "seconds")
        at_least_one(self, "batch_pairs", "micro_batches", "max_tokens", "layers", "eval_every", "eval_pairs")
        if self.batch_pairs % self.micro_batches:
            raise UsageError(f"does not divide batch_pairs ({self.batch_pairs})", field="micro_batches",
                             value=self.micro_batches, remedy="1, or a divisor")  # fmt: skip
        if self.rank < 0:
            raise UsageError("no such rank", field="rank", value=self.rank, remedy="0 trains the weights themselves")
        self.trainer(1.0)  # its own checks, before anything is loaded
        if self.rank:
            _ = self.adapter.lora

    @property
    def adapter(self) -> AdaptTrainConfig:
        """As adapt.add_lora_to_top takes it."""
        return AdaptTrainConfig(
            rank=self.rank, alpha=self.alpha, targets=self.targets, layers=self.layers, dropout=self.dropout,
            seed=self.seed, steps=1,
        )  # fmt: skip

    def trainer(self, steps_per_epoch: float) -> TrainConfig:
        """The one trainer's settings: float32, and the budget."""
        limits = [] if self.steps is None else [self.steps]
        if self.epochs is not None:
            limits.append(max(1, round(self.epochs * steps_per_epoch)))
        return TrainConfig(
            steps=min(limits, default=None), seed=self.seed, clip_norm=self.clip_norm, precision="fp32",
            budget=Budget() if self.seconds is None else Budget(minutes=self.seconds / 60),
            optimizer=OptimizerConfig(lr=self.lr, weight_decay=self.weight_decay, betas=(0.9, 0.99)),
            schedule=ScheduleConfig(kind=self.schedule, warmup=self.warmup),
            threads=self.threads, save_every=self.save_every,
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """The fields that decide the weights, as plain data."""
        return recipes.identity(self)


@dataclass(frozen=True, kw_only=True)
class PreferTrainConfig(PairTrainConfig):
    """Of a policy: everything of PairTrainConfig, and of objectives.preference.PreferenceConfig the loss with its
    constants (beta null: the loss's own)."""

    loss: Literal["dpo", "ipo", "hinge", "robust", "conservative", "kto", "orpo", "simpo", "cpo"] = "dpo"
    beta: float | None = None
    label_smoothing: float = 0.0
    gamma_ratio: float = 0.5
    ipo_normalise: Literal["token", "sum"] = "token"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    nll_weight: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective.loss == "kto" and self.micro_batches > 1:
            raise UsageError("KTO's reference point couples the batch", field="micro_batches", value=self.micro_batches,
                             remedy="1, with a smaller batch_pairs")  # fmt: skip

    @property
    def objective(self) -> PreferenceConfig:
        return PreferenceConfig(**{name: getattr(self, name) for name in _LOSS if hasattr(self, name)})


@dataclass(frozen=True, kw_only=True)
class RewardTrainConfig(PairTrainConfig):
    """Of a reward model: everything of PairTrainConfig, and centre: weight of the squared sum of scores, which fixes
    their zero (see objectives.reward_model)."""

    centre: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.centre >= 0:
            raise UsageError("must not be negative", field="centre", value=self.centre, remedy="0 for none")
