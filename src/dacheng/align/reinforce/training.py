"""Training a policy on rewards: the one Trainer around a source of rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dacheng.adapt.attach import add_lora
from dacheng.align.reinforce.critic import ActorCritic, copied, policy_of
from dacheng.align.reinforce.mixing import ByKind, WithText
from dacheng.align.reinforce.prompts import Prompt
from dacheng.align.reinforce.scoring import Reference
from dacheng.align.reinforce.settings import ReinforceConfig
from dacheng.align.reinforce.source import RewardFunction, RolloutSource
from dacheng.align.reinforce.watch import RolloutLog
from dacheng.align.rollouts.inline import Continuation, InlineWorker
from dacheng.align.rollouts.worker import Worker
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.scalar_head import Scorer
from dacheng.nn.lora_config import Adapter, LoRAConfig
from dacheng.objectives.base import Objective
from dacheng.objectives.next_token import NextToken
from dacheng.objectives.policy import PolicyGradient, ValueRegression
from dacheng.train.callbacks import Callback
from dacheng.train.optimizers import OptimizerConfig
from dacheng.train.phases import Phase
from dacheng.train.rng import derive_seed
from dacheng.train.trainer import Trainer

if TYPE_CHECKING:
    from dacheng.data.batches import Source
    from dacheng.ledger import Ledger

ROLLOUTS = "rollouts"
VALUE_WEIGHT = 0.1
"""Of the critic's loss. It has an optimizer of its own, so with Adam this only moves its clipping."""


@dataclass(slots=True)
class PolicyResult:
    """model: the policy, its adapter still on it (`adapter`, None where all weights were trained). figures: of the last
    set. sets: how many there were. sampler: what wrote the rollouts ("" where none were written), the engine's executor
    ("fused-floats": compiled steps), or the kind of worker."""

    model: Decoder
    adapter: Adapter | None
    steps: int
    sets: int
    seconds: float
    stopped: str
    resumed_from: int | None
    metrics: dict[str, float]
    figures: dict[str, float]
    warnings: list[str] = field(default_factory=list)
    sampler: str = ""

    def to_dict(self) -> dict[str, Any]:
        """All but model and adapter, as plain data."""
        return {name: getattr(self, name) for name in self.__slots__ if name not in ("model", "adapter")}


def train_policy(
    model: Decoder,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    reward: RewardFunction,
    out: Path | str,
    config: ReinforceConfig,
    callbacks: Sequence[Callback] = (),
    *,
    reference: Decoder | None = None,
    worker: Worker | None = None,
    text: Source | None = None,
    continuation: Continuation | None = None,
    ledger: Ledger | None = None,
) -> PolicyResult:
    """Trains `model` in place (or an adapter on it) to be rewarded, with checkpoints, logs and the journal of rollouts
    in `out`; goes on from those of a run that was killed, to the same weights bit for bit.

    reference: what the KL is measured from; None: the model as it comes in. worker: writes the rollouts; None: this
    process, or config.workers processes. text: plain text that is learnt beside, with ptx_coef. continuation: see
    InlineWorker; None: config.tools, if any. Raises UsageError for vocabularies that differ, and what Trainer.fit,
    worker and rewards raise.
    """
    out = Path(out)
    if (text is not None) != (config.ptx_coef > 0):
        raise UsageError("plain text and its weight go together", field="ptx_coef", value=config.ptx_coef,
                         remedy="give text and ptx_coef above 0, or neither")  # fmt: skip
    if continuation is None and config.tools is not None:
        continuation = config.tools.turns()
    trained, adapter, base = prepared(model, config, reference)
    made = worker if worker is not None else _worker(policy_of(trained), tokenizer, config, out, continuation)
    last = None if config.steps is None else (config.steps - 1) // config.updates_per_rollout
    with closing(made), ExitStack() as opened:
        source = RolloutSource(
            prompts, made, reward, config, out / ROLLOUTS, pad_id=tokenizer.pad_id, reference=base, last_set=last
        )
        opened.callback(source.close)
        mixed = source if text is None else WithText(source, text)
        log = RolloutLog(source, config.patience)
        trainer = Trainer(
            trained, phases(trained, config, with_text=text is not None), mixed, [log, *callbacks], config.trainer(),
            out, ledger=ledger,
        )  # fmt: skip
        done = trainer.fit()
        sampler = made.sampler if isinstance(made, InlineWorker) else type(made).__name__
    sets = -(-done.steps // config.updates_per_rollout)
    seen = source.current if source.current is not None or not sets else source.journal.load(sets - 1)
    figures = {} if seen is None else seen.figures  # a run that was finished before has read none
    return PolicyResult(
        policy_of(trained), adapter, done.steps, sets, done.seconds, done.stopped, done.resumed_from, done.metrics,
        figures, done.warnings, sampler,
    )  # fmt: skip


def prepared(
    model: Decoder, config: ReinforceConfig, reference: Decoder | None
) -> tuple[nn.Module, Adapter | None, Reference | None]:
    """What is trained (the policy, or ActorCritic), its adapter, and the reference."""
    adapter: Adapter | None = None
    twin: Decoder | None = None
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "init"))
    if config.adapter:
        model.requires_grad_(False)
        if config.method == "ppo":
            twin = copied(model, share=True)
        alpha = 2.0 * config.adapter if config.alpha is None else config.alpha
        lora = LoRAConfig(rank=config.adapter, alpha=alpha)
        adapter = add_lora(model, lora, generator=generator)
        if twin is not None:
            add_lora(twin, lora, generator=generator)
        base = Reference(model, reference) if config.wants_reference else None
    else:
        frozen = copied(model) if reference is None and config.wants_reference else reference
        base = None if frozen is None else Reference(model, frozen)
        twin = copied(model) if config.method == "ppo" else None
        model.requires_grad_(True)
    if twin is None:
        return model, adapter, base
    return ActorCritic(model, Scorer(twin)), adapter, base


def phases(trained: nn.Module, config: ReinforceConfig, *, with_text: bool = False) -> list[Phase]:
    """One for the policy, and with a critic one for that."""
    part = "policy" if isinstance(trained, ActorCritic) else None
    routed = policy_of(trained).traits.moe is not None
    policy: Objective = PolicyGradient(config.loss, part=part, routed=routed)
    value: Objective = ValueRegression(weight=VALUE_WEIGHT, part="critic")
    if with_text:
        policy = ByKind(policy, NextToken(routed=routed), config.ptx_coef, part)
        value = ByKind(value)
    if not isinstance(trained, ActorCritic):
        return [Phase(policy)]
    own = OptimizerConfig(
        lr=config.lr if config.critic_lr is None else config.critic_lr, weight_decay=0.0, betas=(0.9, 0.99)
    )
    return [
        Phase(policy, parameters=list(trained.policy.parameters()), name="policy"),
        Phase(value, parameters=list(trained.critic.parameters()), optimizer=own, name="critic"),
    ]


def _worker(
    policy: Decoder, tokenizer: Any, config: ReinforceConfig, out: Path, continuation: Continuation | None
) -> Worker:
    if not config.workers:
        return InlineWorker(policy, tokenizer, config.sampling, continuation=continuation)
    from dacheng.align.rollouts.processes import ProcessWorkers

    if continuation is not None:
        raise UsageError("answers of several turns are written in this process", field="workers",
                         value=config.workers, remedy="workers: 0")  # fmt: skip
    return ProcessWorkers(policy, tokenizer, config.sampling, config.workers, out / "workers")
