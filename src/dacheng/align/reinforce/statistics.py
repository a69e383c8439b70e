"""What is logged of a set of rollouts, under TRL's names."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from dacheng.data.rollouts import Rollout

MAX_PARTS = 32  # rewards whose distribution is logged by name


def describe(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Of the rewards: reward, reward_std (over all answers), rewards/NAME/mean and /std, rewards/min and /max,
    frac_reward_zero_std (groups whose answers were all worth the same: they teach a group's method nothing), unjudged
    (answers no reward could say anything about), frac_unjudged. Of the texts: completions/mean_length, /min_length,
    /max_length (own tokens), /clipped_ratio (cut off by max_tokens), /mean_terminated_length, /empty (no text),
    /tool_tokens.
    """
    rewards = [r.reward for r in rollouts if r.reward is not None]
    lengths = [r.own_tokens for r in rollouts]
    ended = [r.own_tokens for r in rollouts if r.finish_reason != "length"]
    found = {
        "completions/mean_length": _mean(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": 1 - len(ended) / len(rollouts),
        "completions/empty": sum(not r.text.strip() for r in rollouts) / len(rollouts),
        "completions/tool_tokens": _mean([len(r.mask) - r.own_tokens for r in rollouts]),
        "unjudged": float(len(rollouts) - len(rewards)),
        "frac_unjudged": 1 - len(rewards) / len(rollouts),
        "logps/sampler_mean": _mean([x for r in rollouts for x, own in zip(r.logps, r.mask) if own]),
    }
    if ended:
        found["completions/mean_terminated_length"] = _mean(ended)
    if rewards:
        found |= {
            "reward": _mean(rewards),
            "reward_std": _spread(rewards),
            "rewards/min": min(rewards),
            "rewards/max": max(rewards),
            "frac_reward_zero_std": zero_spread(rollouts),
        }
    for name in sorted({name for r in rollouts for name in r.parts})[:MAX_PARTS]:
        values = [r.parts[name] for r in rollouts if name in r.parts]
        found |= {f"rewards/{name}/mean": _mean(values), f"rewards/{name}/std": _spread(values)}
    return found


def call_frequency(rollouts: Sequence[Rollout]) -> float:
    """The share of answers in which a tool has written something."""
    return sum(0 in r.mask for r in rollouts) / len(rollouts)


def zero_spread(rollouts: Sequence[Rollout]) -> float:
    """The share of groups whose judged answers are all worth the same; the set is one group where every prompt has one
    answer."""
    groups: dict[str, set[float]] = {}
    for rollout in rollouts:
        if rollout.reward is not None:
            groups.setdefault(rollout.group, set()).add(rollout.reward)
    if len(groups) == sum(r.reward is not None for r in rollouts):
        groups = {"all": {r.reward for r in rollouts if r.reward is not None}}
    return sum(len(values) == 1 for values in groups.values()) / max(1, len(groups))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
