"""From judged rollouts to what the loss reads: old and reference log-probabilities, rewards per token, advantages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dacheng.align.reinforce import scoring
from dacheng.align.reinforce.critic import critic_of, policy_of
from dacheng.align.reinforce.settings import ReinforceConfig
from dacheng.data.batches import IGNORED
from dacheng.data.rollouts import Rollout, RolloutBatch, collate
from dacheng.errors import DachengError
from dacheng.objectives import advantages as adv
from dacheng.objectives.policy import kl


def make_experience(
    rollouts: Sequence[Rollout],
    model: Any,
    config: ReinforceConfig,
    *,
    pad_id: int,
    reference: scoring.Reference | None,
    kl_coef: float,
    first: bool = False,
) -> tuple[RolloutBatch, dict[str, float]]:
    """The batch of a set, and what was measured on the way: objective/kl (of an answer, in nats, from tokens), and
    sampling/… (the gap between sampler and trainer). model: the policy, or ActorCritic.

    Rollouts without a reward are left out (statistics.py counts them); where none has one, nothing is learnt from the
    set, and from the first set of a run (`first`) that is refused: DachengError, since the rewards hardly fit.
    """
    said = [rollout for rollout in rollouts if rollout.reward is not None]
    judged = said or list(rollouts)
    if first and not said:
        raise DachengError(
            f"no reward could say anything about any of {len(rollouts)} answers", field="rewards",
            remedy="check what the rewards need in the prompts' meta",
        )  # fmt: skip
    batch = collate(judged, pad_id)
    if config.mask_truncated:
        _mask_truncated(batch, judged)
    figures: dict[str, float] = {}
    rows, policy = config.micro_rows, policy_of(model)
    assert batch.sampler_logps is not None
    if config.loss.on_policy:  # of one update: no ratio is taken
        batch.old_logps = batch.sampler_logps
    else:
        batch.old_logps = scoring.policy_logps(policy, batch, config.temperature, rows)
        figures |= _gap(batch.old_logps, batch.sampler_logps, batch.mask)
    if reference is not None:
        batch.reference_logps = reference.logps(batch, config.temperature, rows)
        per_answer = (kl(batch.old_logps, batch.reference_logps, "k1") * batch.mask).sum(-1)
        counted = batch.mask.any(-1)  # what was cut off may be masked out: it has no distance, and not 0
        figures["objective/kl"] = float(per_answer.sum() / counted.sum().clamp(min=1))
    critic = critic_of(model)
    if critic is not None:
        batch.values = scoring.values(critic, batch, rows)
    if not said:
        _mask_out(batch, torch.ones(len(judged), dtype=torch.bool))
    add_advantages(batch, judged, config, kl_coef if config.kl_in_reward else 0.0)
    return batch, figures


def teaching_first(rollouts: Sequence[Rollout], count: int) -> list[Rollout]:
    """Those of `count` groups: first the groups whose judged answers are not all worth the same, in their order, then,
    where they do not suffice, the others (Yu et al. 2025, section 3.2, with a bound on what is sampled)."""
    groups: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.group, []).append(rollout)
    differ = {name: len({r.reward for r in own if r.reward is not None}) > 1 for name, own in groups.items()}
    chosen = set(sorted(groups, key=lambda name: not differ[name])[:count])
    return [rollout for rollout in rollouts if rollout.group in chosen]


def add_advantages(batch: RolloutBatch, rollouts: Sequence[Rollout], config: ReinforceConfig, kl_coef: float) -> None:
    """Fills in batch.advantages (and returns, with a critic). Whitened: PPO's (verl, TRL's old trainer) and
    REINFORCE's."""
    scores = torch.tensor([float(rollout.reward or 0.0) for rollout in rollouts])
    groups = [rollout.group for rollout in rollouts]
    per_token = adv.token_rewards(scores, batch.mask, batch.old_logps, batch.reference_logps, kl_coef)
    if config.method == "ppo":
        assert batch.values is not None
        found, batch.returns = adv.gae(per_token, batch.values, batch.mask, config.gamma, config.lam)
        batch.advantages = adv.whiten(found, batch.mask)
    elif config.method == "reinforce":
        batch.advantages = adv.whiten(adv.returns_to_go(per_token, batch.mask, config.gamma), batch.mask)
    else:
        penalty = per_token.sum(-1) - scores * (batch.mask.sum(-1) > 0)
        batch.advantages = adv.spread(_per_answer(scores + penalty, scores, groups, config), batch.mask)


def _per_answer(shaped: Tensor, scores: Tensor, groups: list[str], config: ReinforceConfig) -> Tensor:
    """(N,). shaped: with the penalty in it."""
    if config.method == "rloo":
        return adv.rloo(shaped, groups)
    return adv.group_advantages(scores, groups, "none" if config.method == "dr_grpo" else "std")


def _mask_truncated(batch: RolloutBatch, rollouts: Sequence[Rollout]) -> None:
    """Takes the answers that were cut off out of the loss, and no more (DAPO, section 3.4)."""
    _mask_out(batch, torch.tensor([rollout.finish_reason == "length" for rollout in rollouts]))


def _mask_out(batch: RolloutBatch, rows: Tensor) -> None:
    batch.targets[rows] = IGNORED
    batch.mask[rows] = 0.0


def _gap(old: Tensor, sampler: Tensor, mask: Tensor) -> dict[str, float]:
    """How far the two sides are apart on the same tokens: nats, and TRL's names."""
    gaps = (old - sampler).abs()[mask > 0]
    if not gaps.numel():
        return {}
    return {
        "sampling/sampling_logp_difference/mean": float(gaps.mean()),
        "sampling/sampling_logp_difference/max": float(gaps.max()),
    }
