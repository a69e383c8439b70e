"""The knobs of learning from rewards, and what each method's name stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dacheng import recipes
from dacheng.align.rollouts.ask import Sampling
from dacheng.align.tools.config import ToolsConfig
from dacheng.checks import at_least_one, says_how_long
from dacheng.errors import UsageError
from dacheng.objectives.policy import PolicyGradientConfig
from dacheng.train.config import TrainConfig
from dacheng.train.optimizers import OptimizerConfig
from dacheng.train.schedules import ScheduleConfig

Method = Literal["ppo", "grpo", "dr_grpo", "dapo", "rloo", "gspo", "reinforce"]
_FREE: dict[str, Any] = {"free": True}  # moves no weight
_LATER: dict[str, Any] = {"later": True}  # see recipes.identity: runs from before it go on
_ENDLESS = 1_000_000  # steps, where only the clock says when to stop

LOSSES: dict[str, dict[str, Any]] = {
    "ppo": {"aggregate": "token"},
    "grpo": {"aggregate": "seq_mean"},
    "dr_grpo": {"aggregate": "const"},
    "dapo": {"aggregate": "token", "clip_high": 0.28},
    "rloo": {"aggregate": "seq_sum"},
    "gspo": {"aggregate": "seq_mean", "level": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    "reinforce": {"aggregate": "token"},
}
"""How the loss of each method differs (see objectives.policy.PolicyGradientConfig); advantages: experience.py."""
KL_IN_REWARD = ("ppo", "rloo", "reinforce")
"""Methods whose KL penalty is a part of the reward (Ouyang et al. 2022, eq. 2); of the others it is one of the loss."""


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig:
    """Raises UsageError for values that make no training.

    method: see LOSSES. group: answers to a prompt. prompts_per_step: prompts of a set of rollouts; each set serves for
    updates_per_rollout steps, which go `epochs` times over it. lr, critic_lr (ppo; None: lr), warmup (steps), steps or
    minutes (what comes first). kl_coef: of the penalty; kl_target: the KL of an answer, in nats, that adapts kl_coef
    (Ziegler et al. 2019, section 2.2), None: it stays. max_tokens, temperature, stop: of answers. adapter: rank of a
    LoRA adapter, 0: all weights; alpha of it, None: twice the rank. tools: that the model may call while it answers,
    None: none; what a tool says is of max_tokens, and teaches nothing. clip_low, clip_high: None: the method's. gamma,
    lam: of GAE. lag: a set is written with the weights of one set before: processes write while this one trains.
    importance_cap: weights for what sampler and trainer disagree on (None: 2 with a lag, else off). mask_truncated: an
    answer that was cut off teaches nothing (DAPO's overlong filter). oversample: times as many prompts are answered,
    and those whose answers are not all worth the same are learnt from first (DAPO's dynamic sampling, in one round).
    ptx_coef: of the loss on plain text, where there is some. workers: processes that write rollouts, 0: this one.
    micro_rows: answers in a forward. track_kl: whether the distance from the reference is measured where nothing is
    paid for it (a forward a set). patience: sets in a row without anything to learn, or without an end of text, after
    which a warning is given.
    """

    method: Method = "grpo"
    group: int = 8
    prompts_per_step: int = 16
    updates_per_rollout: int = 1
    epochs: int = 1
    lr: float = 1e-5
    critic_lr: float | None = None
    warmup: int = 0
    steps: int | None = None
    minutes: float | None = None
    kl_coef: float = 0.0
    kl_target: float | None = None
    max_tokens: int = 64
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    adapter: int = 0
    alpha: float | None = None
    clip_low: float | None = None
    clip_high: float | None = None
    entropy_coef: float = 0.0
    gamma: float = 1.0
    lam: float = 0.95
    lag: bool = False
    importance_cap: float | None = None
    mask_truncated: bool = False
    oversample: int = 1
    ptx_coef: float = 0.0
    clip_norm: float = 1.0
    seed: int = 0
    max_batch: int = 64
    tools: ToolsConfig | None = field(default=None, metadata=_LATER)
    workers: int = field(default=0, metadata=_FREE)
    micro_rows: int = field(default=64, metadata=_FREE)
    track_kl: bool = field(default=True, metadata=_FREE)
    save_every: int = field(default=50, metadata=_FREE)
    patience: int = field(default=10, metadata=_FREE)

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UsageError("no such method", field="method", value=self.method, remedy=", ".join(get_args(Method)))
        says_how_long(self, "steps", "minutes")
        at_least_one(
            self, "group", "prompts_per_step", "updates_per_rollout", "epochs", "oversample", "micro_rows", "patience"
        )
        for name in ("kl_coef", "adapter", "workers", "ptx_coef", "warmup"):
            if getattr(self, name) < 0:
                raise UsageError("must not be negative", field=name, value=getattr(self, name), remedy="0 for none")
        self._check_group()
        if self.tools is not None and self.workers:
            raise UsageError("answers with tools are written in this process", field="workers", value=self.workers,
                             remedy="workers: 0")  # fmt: skip
        if self.updates_per_rollout % self.epochs or self.rollouts < self.minibatches:
            raise UsageError(
                f"{self.rollouts} rollouts cannot be gone over {self.epochs} times in {self.updates_per_rollout} "
                "updates", field="updates_per_rollout", value=self.updates_per_rollout,
                remedy="a multiple of epochs, at most epochs * group * prompts_per_step",
            )  # fmt: skip
        if self.kl_target is not None and not (self.kl_target > 0 and self.kl_coef > 0):
            raise UsageError("an adaptive penalty needs a target and a coefficient to start from, both above 0",
                             field="kl_target", value=self.kl_target, remedy="kl_coef: 0.1")  # fmt: skip
        if self.kl_target is not None and not self.kl_in_reward:
            raise UsageError(f"the penalty of {self.method} is a part of the loss: its weight stays",
                             field="kl_target", value=self.kl_target, remedy="method: ppo, rloo")  # fmt: skip
        _ = self.sampling, self.loss, self.trainer()  # their own checks, before anything is loaded

    def _check_group(self) -> None:
        compares = self.method in ("grpo", "dr_grpo", "dapo", "rloo", "gspo")
        if compares and self.group < 2:
            raise UsageError(f"{self.method} compares the answers to a prompt with each other", field="group",
                             value=self.group, remedy="2 or more, or method: ppo")  # fmt: skip

    @property
    def rollouts(self) -> int:
        """Of a set."""
        return self.group * self.prompts_per_step

    @property
    def minibatches(self) -> int:
        """Of an epoch over a set."""
        return self.updates_per_rollout // self.epochs

    @property
    def kl_in_reward(self) -> bool:
        return self.method in KL_IN_REWARD

    @property
    def wants_reference(self) -> bool:
        return self.track_kl or self.kl_coef > 0

    @property
    def cap(self) -> float | None:
        return 2.0 if self.importance_cap is None and self.lag else self.importance_cap

    @property
    def sampling(self) -> Sampling:
        stop = self.stop if self.tools is None else (*self.stop, *self.tools.stop)
        return Sampling(
            max_tokens=self.max_tokens, temperature=self.temperature, stop=stop, max_batch=self.max_batch
        )  # fmt: skip

    @property
    def loss(self) -> PolicyGradientConfig:
        """A set that serves for one update is on policy: no ratio, and no old log-probabilities to compute."""
        chosen = dict(LOSSES[self.method])
        for name in ("clip_low", "clip_high"):
            if (value := getattr(self, name)) is not None:
                chosen[name] = value
        return PolicyGradientConfig(
            **chosen, max_completion=self.max_tokens if chosen["aggregate"] == "const" else None,
            on_policy=self.updates_per_rollout == 1, kl_coef=0.0 if self.kl_in_reward else self.kl_coef,
            entropy_coef=self.entropy_coef, importance_cap=self.cap, temperature=self.temperature,
        )  # fmt: skip

    def trainer(self) -> TrainConfig:
        """The one trainer's settings: float32, a constant rate after the warm-up."""
        return TrainConfig(
            steps=_ENDLESS if self.steps is None else self.steps, seed=self.seed, clip_norm=self.clip_norm,
            precision="fp32", max_minutes=self.minutes, save_every=self.save_every,
            optimizer=OptimizerConfig(lr=self.lr, weight_decay=0.0, betas=(0.9, 0.99)),
            schedule=ScheduleConfig(kind="constant", warmup=self.warmup),
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """The fields that decide the weights, as plain data."""
        return recipes.identity(self)

    def rollout_identity(self) -> dict[str, Any]:
        """Those that decide the rollouts: a longer run goes on from the journal of a shorter one."""
        return {name: value for name, value in self.identity().items() if name not in ("steps", "minutes")}
