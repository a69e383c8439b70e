"""Learning from rewards: the policy's loss on rollouts, and the regression of a critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dacheng.errors import UsageError
from dacheng.nn.contexts import DenseCausal
from dacheng.objectives.base import Metrics, StepContext, Term
from dacheng.objectives.cross_entropy import IGNORED
from dacheng.objectives.logps import entropy
from dacheng.objectives.policy_losses import (
    Aggregate,
    KlKind,
    Level,
    TokenLoss,
    aggregate,
    importance,
    kl,
    ppo_policy,
    ppo_value,
    token_sum,
)
from dacheng.objectives.routing import routed_layers, routing_counts, routing_terms
from dacheng.objectives.shared_prompts import answer_logps

if TYPE_CHECKING:
    from dacheng.data.rollouts import RolloutBatch

__all__ = [
    "PolicyGradient", "PolicyGradientConfig", "TokenLoss", "ValueRegression", "aggregate", "entropy", "importance",
    "kl", "ppo_policy", "ppo_value", "token_sum",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig:
    """The constants of a policy's loss. Raises UsageError for values that no loss has.

    clip_low, clip_high, dual_clip, level: as in `ppo_policy`. aggregate: as in `aggregate`; const divides by rows ·
    max_completion. on_policy: the ratio is taken to the policy itself and so is 1: REINFORCE's gradient, without
    old_logps; right where rollouts serve for one update. kl_coef, kl_kind: a penalty in the loss (one in the reward is
    `advantages.token_rewards`). entropy_coef: of the mean entropy per token, taken off the loss. importance_cap,
    importance_level, importance_mode: weights for what policy and sampler disagree on, see `importance`; a cap of null
    for none. temperature: the sampler's. chunk: tokens whose logits are held at once.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    level: Level = "token"
    aggregate: Aggregate = "token"
    max_completion: int | None = None
    on_policy: bool = False
    kl_coef: float = 0.0
    kl_kind: KlKind = "k3"
    entropy_coef: float = 0.0
    importance_cap: float | None = None
    importance_level: Level = "token"
    importance_mode: Literal["truncate", "mask"] = "truncate"
    temperature: float = 1.0
    chunk: int = 512

    def __post_init__(self) -> None:
        if self.aggregate == "const" and not self.max_completion:
            raise UsageError("const divides by the longest completion allowed", field="max_completion",
                             value=self.max_completion, remedy="the rollouts' max_tokens")  # fmt: skip
        if not 0 <= self.clip_low <= 1:
            raise UsageError("a ratio is never negative", field="clip_low", value=self.clip_low, remedy="0 to 1")
        for name in ("clip_high", "kl_coef", "entropy_coef"):
            if getattr(self, name) < 0:
                raise UsageError("must not be negative", field=name, value=getattr(self, name), remedy="0 or more")
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            raise UsageError("would clip what clip_high allows", field="dual_clip", value=self.dual_clip,
                             remedy="for example 3")  # fmt: skip


class PolicyGradient:
    """PPO's clipped loss on rollouts with their advantages, and with them GRPO, Dr. GRPO, DAPO, RLOO, GSPO, REINFORCE:
    these differ in how advantages are made (objectives.advantages) and in the constants.

    part: the attribute of the trained model that is the policy, where that holds more (a critic); None: all of it.
    routed: for a model with experts, as in NextToken.
    """

    couples_batch = False

    def __init__(
        self, config: PolicyGradientConfig | None = None, part: str | None = None, routed: bool = False
    ) -> None:
        self.config, self.part, self.routed = config if config is not None else PolicyGradientConfig(), part, routed

    def counts(self, batch: RolloutBatch) -> dict[str, float]:
        tokens, c = float((batch.mask > 0).sum()), self.config
        rows = float(batch.mask.shape[0])
        per_row = float(c.max_completion or 1) if c.aggregate == "const" else 1.0
        divisor = tokens if c.aggregate == "token" else rows * per_row
        counts = {"policy": divisor}
        if c.kl_coef:
            counts["kl"] = divisor
        if c.entropy_coef:
            counts["entropy"] = tokens
        return counts | routing_counts(_own_targets(batch)) if self.routed else counts

    def __call__(self, model: Any, batch: RolloutBatch, ctx: StepContext) -> tuple[dict[str, Term], Metrics]:
        """See data.rollouts.RolloutBatch. Raises UsageError where what the constants ask for is not in the batch."""
        c, mask = self.config, batch.mask
        policy = model if self.part is None else getattr(model, self.part)
        targets = _own_targets(batch)
        logps, entropies = answer_logps(
            policy, batch.tokens, targets, temperature=c.temperature, chunk=c.chunk,
            entropy=True if c.entropy_coef else "figure",
        )  # fmt: skip
        old = logps.detach() if c.on_policy else batch.old_logps
        loss = ppo_policy(logps, old, batch.advantages, mask, c.clip_low, c.clip_high, c.dual_clip, c.level)
        per_token, weights = loss.per_token, self._importance(batch, old)
        if weights is not None:
            per_token = per_token * weights
        terms = {"policy": Term(token_sum(per_token, mask, c.aggregate))}
        figures = {**loss.metrics, "entropy": entropies.detach()}
        if batch.reference_logps is not None:
            with torch.no_grad():
                figures["kl"] = kl(logps, batch.reference_logps, "k3")
        if c.kl_coef:
            reference = _required(batch.reference_logps, "reference_logps", "kl_coef", c.kl_coef)
            penalty = kl(logps, reference, c.kl_kind)
            terms["kl"] = Term(token_sum(penalty, mask, c.aggregate), c.kl_coef)
        if c.entropy_coef:
            terms["entropy"] = Term(-token_sum(entropies, mask), c.entropy_coef)
        if batch.sampler_logps is not None:
            figures["sampling/sampling_logp_difference/mean"] = (old - batch.sampler_logps).abs()
        if weights is not None:
            figures["sampling/importance_sampling_ratio/mean"] = weights.expand_as(mask)
        tokens = float((mask > 0).sum())
        metrics: Metrics = {name: (token_sum(values, mask), tokens) for name, values in figures.items()}
        return terms | self._routing(policy, targets, batch), metrics

    def _importance(self, batch: RolloutBatch, old: Tensor) -> Tensor | None:
        c = self.config
        if c.importance_cap is None:
            return None
        drawn = _required(batch.sampler_logps, "sampler_logps", "importance_cap", c.importance_cap)
        return importance(old, drawn, c.importance_cap, batch.mask, c.importance_level, c.importance_mode)

    def _routing(self, policy: Any, targets: Tensor, batch: RolloutBatch) -> dict[str, Term]:
        layers = routed_layers(policy) if torch.is_grad_enabled() else []
        if not layers:
            return {}
        if not self.routed:
            raise UsageError("the model has experts", field="routed", value=False, remedy="PolicyGradient(routed=True)")
        # Up to a row's last target: what follows is padding, which no target reads.
        valid = (targets != IGNORED).int().flip(-1).cummax(-1).values.flip(-1) > 0
        return routing_terms(layers, targets, valid)


@dataclass(slots=True)
class ValueRegression:
    """A critic's squared error against the returns, ½ per token, clipped as in `ppo_value`.

    The critic is a decoder body with `score(hidden (..., D)) -> (...)`: the value before the token of `targets` is
    chosen, from what came before it. part: as in PolicyGradient. clip: None for none. weight: of the term.
    """

    clip: float | None = 0.2
    weight: float = 1.0
    part: str | None = None
    couples_batch: bool = False

    def counts(self, batch: RolloutBatch) -> dict[str, float]:
        return {"value": float((batch.mask > 0).sum())}

    def __call__(self, model: Any, batch: RolloutBatch, ctx: StepContext) -> tuple[dict[str, Term], Metrics]:
        """batch.returns and batch.values (the critic's when the rollouts were made), both (B, T), are required."""
        values = critic_values(model if self.part is None else getattr(model, self.part), batch.tokens)
        returns = _required(batch.returns, "returns", "ValueRegression", None)
        old = _required(batch.values, "values", "ValueRegression", None)
        loss = ppo_value(values, old, returns, batch.mask, self.clip)
        total, tokens = token_sum(loss.per_token, batch.mask), self.counts(batch)["value"]
        metrics: Metrics = {name: (token_sum(values, batch.mask), tokens) for name, values in loss.metrics.items()}
        metrics |= {
            "loss/value_avg": (total.detach(), tokens),
            "val/mean": (token_sum(values.detach(), batch.mask), tokens),
        }
        return {"value": Term(total, self.weight)}, metrics


def critic_values(critic: Any, tokens: Tensor) -> Tensor:
    """The critic's value after each prefix: tokens (B, T) right-padded -> (B, T)."""
    hidden = critic(tokens, torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens), DenseCausal())
    return critic.score(hidden)  # type: ignore[no-any-return]


def _own_targets(batch: RolloutBatch) -> Tensor:
    return batch.targets.masked_fill(batch.mask <= 0, IGNORED)


def _required(value: Tensor | None, name: str, because: str, setting: Any) -> Tensor:
    if value is None:
        raise UsageError(f"{because} needs {name} in the batch", field=because, value=setting, remedy=f"fill {name} in")
    return value
