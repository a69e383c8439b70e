"""Policy-gradient losses: pure functions of log-probabilities, per token, and how tokens become one number.

(B, T) everywhere, aligned with the targets; mask is 1 on the tokens that the model chose itself. Metric names are
TRL's.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dacheng.errors import UsageError

Aggregate = Literal["token", "seq_mean", "seq_sum", "const"]
Level = Literal["token", "sequence"]
KlKind = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0
"""exp(20) is 5e8: a ratio beyond it is a broken run, and as infinity it would make 0 · inf = NaN of a zero advantage.
verl clamps at the same place; TRL not at all."""


class TokenLoss(NamedTuple):
    """per_token (B, T), not masked yet: see `aggregate`. metrics (B, T): figures without gradient, to be averaged over
    the mask."""

    per_token: Tensor
    metrics: dict[str, Tensor]


def aggregate(per_token: Tensor, mask: Tensor, how: Aggregate = "token", denom: float | Tensor | None = None) -> Tensor:
    """One number of a loss (B, T) and its mask (B, T). What it is divided by decides which answers weigh how much:

    - token: Σ / tokens: long answers weigh more (DAPO: Yu et al. 2025, eq. 8; TRL's bnpo and dapo)
    - seq_mean: each answer's mean, then their mean: a long answer's token weighs less (GRPO: Shao et al. 2024, eq. 3)
    - seq_sum: each answer's sum, then their mean
    - const: Σ / denom, a constant such as rows · the longest completion allowed (Dr. GRPO: Liu et al. 2025)

    denom: what the sum is divided by instead of this batch's own tokens or rows, such as those of all micro-batches and
    ranks. By default all rows count, those without a token too (TRL; verl: denom = rows that have one). A batch
    without anything counted gives 0. Raises UsageError for const without denom.
    """
    total = token_sum(per_token, mask, how)
    if denom is None:
        if how == "const":
            raise UsageError("needs a constant to divide by", field="denom", remedy="rows · the longest completion")
        denom = mask.sum() if how == "token" else mask.shape[0]
    divisor = torch.as_tensor(denom, dtype=total.dtype, device=total.device)
    return total / divisor.clamp(min=torch.finfo(total.dtype).tiny) if how == "const" else total / divisor.clamp(min=1)


def token_sum(per_token: Tensor, mask: Tensor, how: Aggregate = "token") -> Tensor:
    """The numerator of `aggregate`: what may be added up over micro-batches and ranks. Where the mask is 0, not even a
    NaN counts."""
    mask = mask.to(per_token.dtype)
    kept = torch.where(mask > 0, per_token * mask, 0.0)
    if how == "seq_mean":
        return (kept.sum(-1) / mask.sum(-1).clamp(min=1.0)).sum()
    if how not in ("token", "seq_sum", "const"):
        raise UsageError("no such way", field="how", value=how, remedy="token, seq_mean, seq_sum or const")
    return kept.sum()


def ppo_policy(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    level: Level = "token",
) -> TokenLoss:
    """-min(r·A, clip(r, 1-clip_low, 1+clip_high)·A) with r = π/π_old (Schulman et al. 2017, eq. 7).

    clip_high above clip_low leaves rare tokens room to grow (DAPO: Yu et al. 2025, eq. 8). dual_clip c: for A < 0 the
    loss is at most -c·A (Ye et al. 2020, eq. 5), so that a token that has become much likelier cannot dominate; TRL's
    `delta`. level "sequence": r is the geometric mean over the answer, exp(mean log π/π_old), the same for each of its
    tokens; a token's gradient is its own log-probability's (GSPO: Zheng et al. 2025, eq. 7 and 14).
    """
    mask = mask.to(logps.dtype)
    log_ratio = torch.where(mask > 0, logps - old_logps, 0.0)
    if level == "sequence":
        own = log_ratio.detach()
        mean = (own * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1.0)
        log_weight = mean + (log_ratio - own)  # the number of the first, the gradient of the second
    elif level == "token":
        log_weight = log_ratio
    else:
        raise UsageError("no such level", field="level", value=level, remedy="token or sequence")
    if dual_clip is not None and not dual_clip > 1 + clip_high:
        raise UsageError("would clip what clip_high allows", field="dual_clip", value=dual_clip, remedy="for example 3")
    ratio = log_weight.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    with torch.no_grad():
        low, high = (ratio < 1 - clip_low) & (advantages < 0), (ratio > 1 + clip_high) & (advantages > 0)
        metrics = {
            "clip_ratio/low_mean": low.float(),
            "clip_ratio/high_mean": high.float(),
            "clip_ratio/region_mean": (low | high).float(),
            "policy/approxkl_avg": kl(logps, old_logps, "k2"),
        }
        if dual_clip is not None:
            metrics["clip_ratio/dual_mean"] = ((ratio > dual_clip) & (advantages < 0)).float()
    return TokenLoss(loss, metrics)


def ppo_value(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None = 0.2) -> TokenLoss:
    """½·max((V - R)², (V_clipped - R)²), V_clipped within `clip` of the value when the rollout was made (the
    pessimistic twin of PPO's clip; OpenAI's code, kept by TRL and verl). clip None: ½·(V - R)². All (B, T)."""
    plain = (values - returns).square()
    if clip is None:
        return TokenLoss(0.5 * plain, {"val/clipfrac_avg": torch.zeros_like(plain)})
    near = torch.maximum(torch.minimum(values, old_values + clip), old_values - clip)
    clipped = (near - returns).square()
    with torch.no_grad():
        metrics = {"val/clipfrac_avg": (clipped > plain).float()}
    return TokenLoss(0.5 * torch.maximum(plain, clipped), metrics)


def kl(logps: Tensor, reference_logps: Tensor, kind: KlKind = "k1") -> Tensor:
    """Estimates of KL(policy ‖ reference) from one token drawn from the policy, d = log π - log π_ref (Schulman 2020):

    - k1: d. Unbiased, of large variance, often negative. As a loss it teaches nothing: its gradient averages to 0.
    - k2: d²/2. Biased, positive. Its gradient averages to that of the KL.
    - k3: exp(-d) + d - 1. Unbiased, positive, of small variance while the two are near each other, of any size where
      the reference likes what the policy gives up. Its gradient averages to that of KL(reference ‖ policy).
    """
    d = logps - reference_logps
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d.square()
    if kind == "k3":
        return (-d).clamp(max=MAX_LOG_RATIO).exp() + d - 1
    raise UsageError("no such estimator", field="kind", value=kind, remedy="k1, k2 or k3")


@torch.no_grad()
def importance(
    trainer_logps: Tensor,
    sampler_logps: Tensor,
    cap: float,
    mask: Tensor | None = None,
    level: Level = "token",
    mode: Literal["truncate", "mask"] = "truncate",
) -> Tensor:
    """Weights π_trainer / π_sampler for a loss whose tokens another implementation drew: (B, T), or (B, 1) for a whole
    answer's ratio (level "sequence", which needs the mask). No gradient.

    truncate: at most `cap` (Ionides 2008; Yao et al. 2025). mask: 0 where it is above. Two kernels give a token
    probabilities that differ in the last digits, another quantization ones that differ in the first.
    """
    log_ratio = trainer_logps - sampler_logps
    if level == "sequence":
        if mask is None:
            raise UsageError("a whole answer's ratio needs its mask", field="mask", remedy="give it, or level token")
        log_ratio = torch.where(mask > 0, log_ratio, 0.0).sum(-1, keepdim=True)
    elif level != "token":
        raise UsageError("no such level", field="level", value=level, remedy="token or sequence")
    if not cap > 0:
        raise UsageError("must be above 0", field="cap", value=cap, remedy="2.0")
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    if mode == "truncate":
        return ratio.clamp(max=cap)
    if mode != "mask":
        raise UsageError("no such mode", field="mode", value=mode, remedy="truncate or mask")
    return torch.where(ratio > cap, 0.0, ratio)
