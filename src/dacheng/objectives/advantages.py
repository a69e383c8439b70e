"""Advantages: how much better a token, or a whole answer, was than expected. Pure functions of rewards."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor

from dacheng.errors import UsageError
from dacheng.objectives.policy_losses import kl

Groups = Tensor | Sequence[Hashable]
"""(N,): answers to the same prompt have equal entries."""


# --- per token --------------------------------------------------------------------------------------------------------
@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16): (advantages, returns = advantages + values).

    rewards, values, mask, results: (B, T). δ_t = r_t + γ·V_{t+1} - V_t; A_t = Σ_k (γλ)^k δ_{t+k}, over the positions
    whose mask is 1: what lies between (a tool's words) is passed over as if it were not there, and after the last one
    the value is 0. Not whitened (see `whiten`). 0 outside of the mask.
    """
    mask = mask.to(values.dtype)
    next_value, running = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    reversed_advantages = []
    for t in range(rewards.shape[1] - 1, -1, -1):
        own = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(own > 0, delta + gamma * lam * running, running)
        next_value = torch.where(own > 0, values[:, t], next_value)
        reversed_advantages.append(running)
    advantages = torch.stack(reversed_advantages[::-1], dim=1) * mask
    return advantages, (advantages + values) * mask


@torch.no_grad()
def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """R_t = r_t + γ·R_{t+1} over the positions of the mask: the signal of plain REINFORCE (Williams 1992).
    rewards, mask, result (B, T)."""
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, 1.0)[0]


@torch.no_grad()
def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """(values - mean) / std over the mask, the variance unbiased; 0 outside. values, mask, result (B, T).

    shift_mean: False puts the mean back, so that only the scale changes. A single element has no spread: it becomes its
    distance from the mean, 0.
    """
    mask = mask.to(values.dtype)
    count = mask.sum()
    mean = (values * mask).sum() / count.clamp(min=1.0)
    variance = ((values - mean).square() * mask).sum() / (count - 1).clamp(min=1.0)
    whitened = (values - mean) * torch.rsqrt(variance + eps)
    return (whitened if shift_mean else whitened + mean) * mask


@torch.no_grad()
def token_rewards(
    scores: Tensor,
    mask: Tensor,
    logps: Tensor | None = None,
    reference_logps: Tensor | None = None,
    kl_coef: float = 0.0,
    kind: Literal["k1", "k2", "k3"] = "k1",
) -> Tensor:
    """The reward of each token: the answer's score at its last own token, minus kl_coef · KL at each (Ouyang et al.
    2022, eq. 2; Ziegler et al. 2019, section 2). scores (B,), the others and the result (B, T).

    An answer without a token of its own gets nothing. Raises UsageError for a kl_coef without both log-probabilities.
    """
    mask = mask.float()
    steps = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = (mask * steps).argmax(-1, keepdim=True)  # of the own ones, the furthest
    out = torch.zeros_like(mask).scatter_(1, last, scores.float().unsqueeze(1)) * mask
    if kl_coef:
        if logps is None or reference_logps is None:
            raise UsageError(
                "a penalty needs the log-probabilities of policy and reference", field="kl_coef", value=kl_coef,
                remedy="give logps and reference_logps, or kl_coef=0",
            )  # fmt: skip
        out = out - kl_coef * kl(logps, reference_logps, kind) * mask
    return out


def spread(advantages: Tensor, mask: Tensor) -> Tensor:
    """(B,) over the tokens of the mask (B, T): each token of an answer has the answer's advantage."""
    return advantages.unsqueeze(1) * mask.to(advantages.dtype)


# --- per answer -------------------------------------------------------------------------------------------------------
@torch.no_grad()
def group_advantages(
    rewards: Tensor, groups: Groups, scale: Literal["std", "batch", "none"] = "std", eps: float = 1e-4
) -> Tensor:
    """reward - mean of its group, divided by a spread: rewards (N,) -> (N,).

    scale: "std" of the group (GRPO: Shao et al. 2024, section 4.1.2), unbiased, plus eps (TRL's 1e-4; verl's is 1e-6);
    "batch": of all rewards together; "none" (Dr. GRPO: Liu et al. 2025; the division favours questions that are nearly
    always, or never, answered right). An answer alone in its group has nothing to be compared with: 0 (verl gives it
    its reward). A group that is all equal gives 0, see `all_equal`. Raises UsageError for rewards that are not finite.
    """
    rewards, index, counts = _grouped(rewards, groups)
    centred = rewards - _group_means(rewards, index, counts)
    if scale == "none":
        return centred
    if scale == "batch":
        spread_ = rewards.std() if len(rewards) > 1 else torch.zeros((), device=rewards.device)
        return centred / (spread_ + eps)
    if scale != "std":
        raise UsageError("no such scale", field="scale", value=scale, remedy="std, batch or none")
    squares = torch.zeros_like(counts).index_add_(0, index, centred.square())
    return centred / ((squares / (counts - 1).clamp(min=1.0)).sqrt()[index] + eps)


@torch.no_grad()
def rloo(rewards: Tensor, groups: Groups) -> Tensor:
    """reward - mean of the others of its group (Ahmadian et al. 2024, eq. 8; Kool et al. 2019): (N,) -> (N,).

    It is n/(n-1) times the distance from the group's own mean. Alone in its group: 0, as there is no baseline.
    """
    rewards, index, counts = _grouped(rewards, groups)
    n = counts[index]
    return (rewards - _group_means(rewards, index, counts)) * n / (n - 1).clamp(min=1.0)


@torch.no_grad()
def reinforce(rewards: Tensor, baseline: float | Tensor | Literal["mean", "none"] = "mean") -> Tensor:
    """reward - baseline (Williams 1992): (N,) -> (N,). baseline: the mean of all, none, or what is given (a
    running mean of earlier steps has no share in these answers and so leaves the gradient unbiased)."""
    rewards, _, _ = _grouped(rewards, torch.zeros_like(rewards, dtype=torch.int64))
    if isinstance(baseline, str):
        if baseline not in ("mean", "none"):
            raise UsageError("no such baseline", field="baseline", value=baseline, remedy="mean, none or a number")
        return rewards - rewards.mean() if baseline == "mean" and len(rewards) else rewards
    return rewards - baseline


@torch.no_grad()
def all_equal(rewards: Tensor, groups: Groups) -> Tensor:
    """(N,) boolean: every answer of its group has the same reward, so the group teaches nothing. Its mean is TRL's
    `frac_reward_zero_std`."""
    rewards, index, counts = _grouped(rewards, groups)
    low = torch.full_like(counts, torch.inf).scatter_reduce_(0, index, rewards, "amin")
    high = torch.full_like(counts, -torch.inf).scatter_reduce_(0, index, rewards, "amax")
    return (low == high)[index]


def _grouped(rewards: Tensor, groups: Groups) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards as floats, the number of each one's group (N,), and the groups' sizes."""
    rewards = rewards.detach()
    rewards = rewards if rewards.is_floating_point() else rewards.float()
    if not bool(torch.isfinite(rewards).all()):
        raise UsageError(
            "a reward is not finite", field="rewards", value=rewards.tolist(),
            remedy="leave out the answers whose reward cannot be said",
        )  # fmt: skip
    if len(groups) != len(rewards):
        raise UsageError(
            f"{len(rewards)} rewards need as many groups", field="groups", value=len(groups), remedy="one per answer"
        )
    if isinstance(groups, Tensor):
        _, index = groups.to(rewards.device).unique(return_inverse=True)
    else:
        numbers: dict[Hashable, int] = {}
        index = torch.tensor([numbers.setdefault(g, len(numbers)) for g in groups], dtype=torch.int64)
        index = index.to(rewards.device)
    size = int(index.max()) + 1 if len(index) else 0
    counts = torch.zeros(size, dtype=rewards.dtype, device=rewards.device).index_add_(
        0, index, torch.ones_like(rewards)
    )
    return rewards, index, counts


def _group_means(rewards: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    return (torch.zeros_like(counts).index_add_(0, index, rewards) / counts)[index]
