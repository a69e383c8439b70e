"""Losses on preferences: pure functions of the log-probabilities of whole answers.

Answers come in pairs (one chosen, one rejected), or for KTO one by one, each marked desirable or not. Metric names are
TRL's.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dacheng.errors import UsageError

DpoKind = Literal["sigmoid", "hinge", "robust", "conservative", "ipo"]
CpoKind = Literal["sigmoid", "hinge"]


class PairLogps(NamedTuple):
    """Sums over the tokens of each answer, and how many these are: all (P,)."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    def means(self) -> tuple[Tensor, Tensor]:
        """Per token. An answer without tokens has the mean 0."""
        return self.chosen / self.chosen_tokens.clamp(min=1), self.rejected / self.rejected_tokens.clamp(min=1)


class LossOut(NamedTuple):
    """per_example: the loss of each pair (P,) or answer (N,). metrics: figures without gradient, each to be averaged
    over its own elements."""

    per_example: Tensor
    metrics: dict[str, Tensor]


def dpo(
    policy: PairLogps,
    reference: PairLogps,
    beta: float = 0.1,
    kind: DpoKind = "sigmoid",
    label_smoothing: float = 0.0,
    ipo_normalise: Literal["token", "sum"] = "token",
) -> LossOut:
    """Direct preference optimisation. With Δ = log π/π_ref of the chosen answer minus that of the rejected one:

    - sigmoid: -log σ(βΔ) (Rafailov et al. 2023, eq. 7); ln 2 where policy and reference are the same
    - hinge: max(0, 1 - βΔ) (Zhao et al. 2023, SLiC-HF, with β = 1/δ)
    - conservative: -(1-ε) log σ(βΔ) - ε log σ(-βΔ), labels wrong with probability ε (Mitchell 2023)
    - robust: the same made unbiased, ((1-ε)·L(Δ) - ε·L(-Δ)) / (1-2ε) (Chowdhury et al. 2024)
    - ipo: (Δ - 1/(2β))² (Azar et al. 2023, eq. 17). Δ of log-probabilities per token ("token": TRL, and by its authors
      what the paper's results used) or of sums ("sum": OpenRLHF; the target then weighs less the longer the answers)

    label_smoothing ε is of conservative and robust alone: for another kind, UsageError.
    """
    check_constants(beta, label_smoothing, kind in ("conservative", "robust"), kind)
    chosen, rejected = policy.chosen - reference.chosen, policy.rejected - reference.rejected
    delta = chosen - rejected
    if kind == "sigmoid":
        loss = -logsigmoid(beta * delta)
    elif kind == "hinge":
        loss = torch.relu(1 - beta * delta)
    elif kind == "conservative":
        loss = _smoothed(beta * delta, label_smoothing)
    elif kind == "robust":
        right, flipped = -logsigmoid(beta * delta), -logsigmoid(-beta * delta)
        loss = ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    elif kind == "ipo":
        if ipo_normalise == "token":
            delta = chosen / policy.chosen_tokens.clamp(min=1) - rejected / policy.rejected_tokens.clamp(min=1)
        elif ipo_normalise != "sum":
            raise UsageError("no such choice", field="ipo_normalise", value=ipo_normalise, remedy="token or sum")
        loss = (delta - 1 / (2 * beta)).square()
    else:
        raise UsageError("no such loss", field="kind", value=kind, remedy=", ".join(get_args(DpoKind)))
    return LossOut(loss, _metrics(beta * chosen, beta * rejected, policy.chosen, policy.rejected))


def kto(
    policy: Tensor,
    reference: Tensor,
    desirable: Tensor,
    kl: Tensor,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossOut:
    """Kahneman–Tversky optimisation (Ethayarajh et al. 2024, section 4.1): w·(1 - σ(±β(log π/π_ref - kl))), + for what
    is desirable, - for what is not.

    policy, reference: (N,) sums; desirable: (N,) boolean. kl: a scalar, see `kto_kl`; no gradient goes through it.
    Where policy and reference are the same, and so kl is 0, the loss is half the weight.
    """
    check_constants(beta)
    kl, ratio = kl.detach(), policy - reference
    loss = torch.where(
        desirable,
        desirable_weight * torch.sigmoid(-beta * (ratio - kl)),
        undesirable_weight * torch.sigmoid(beta * (ratio - kl)),
    )
    rewards, seen = (beta * ratio).detach(), policy.detach()
    metrics = {
        "rewards/chosen": rewards[desirable],
        "rewards/rejected": rewards[~desirable],
        "logps/chosen": seen[desirable],
        "logps/rejected": seen[~desirable],
        "kl": kl.reshape(1),
    }
    return LossOut(loss, metrics)


def kto_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """KTO's reference point (section 4.1 of the paper, z₀): max(0, mean of log π/π_ref) over answers (N,) that belong
    to other prompts. A scalar without gradient; 0 for no answer."""
    if policy.numel() == 0:
        return torch.zeros((), device=policy.device)
    return (policy - reference).detach().mean().clamp(min=0.0)


def orpo(policy: PairLogps, beta: float = 0.1) -> LossOut:
    """The odds-ratio part of ORPO (Hong et al. 2024, eq. 7): -β·log σ(log odds(chosen) - log odds(rejected)), with
    odds(p) = p / (1-p) of the mean log-probability per token (eq. 4, 5). β is the paper's λ.

    The whole loss (eq. 6) adds the mean negative log-likelihood of the chosen answers: Preference does. There is no
    reference model. Equal answers cost β·ln 2.
    """
    check_constants(beta)
    chosen, rejected = policy.means()
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    ratio = logsigmoid(log_odds)
    metrics = _metrics(beta * chosen, beta * rejected, chosen, rejected)
    metrics |= {"log_odds_ratio": ratio.detach(), "log_odds_chosen": log_odds.detach()}
    return LossOut(-beta * ratio, metrics)


def simpo(policy: PairLogps, beta: float = 2.0, gamma_ratio: float = 0.5, label_smoothing: float = 0.0) -> LossOut:
    """Simple preference optimisation (Meng et al. 2024, eq. 6): -log σ(β·(mean chosen - mean rejected) - γ), with means
    per token and no reference. gamma_ratio = γ/β, by the paper .1 to .8 with β from 2 to 10 (section 4).

    label_smoothing as in `dpo`'s conservative kind.
    """
    check_constants(beta, label_smoothing)
    chosen, rejected = policy.means()
    loss = _smoothed(beta * (chosen - rejected - gamma_ratio), label_smoothing)
    return LossOut(loss, _metrics(beta * chosen, beta * rejected, chosen, rejected))


def cpo(policy: PairLogps, beta: float = 0.1, kind: CpoKind = "sigmoid", label_smoothing: float = 0.0) -> LossOut:
    """Contrastive preference optimisation (Xu et al. 2024, eq. 3): DPO with a uniform reference, -log σ(β(chosen -
    rejected)) of sums. The whole loss adds the negative log-likelihood of the chosen answers: Preference does.

    kind "hinge": max(0, 1 - β·(chosen - rejected)). label_smoothing is of "sigmoid" alone.
    """
    check_constants(beta, label_smoothing, kind == "sigmoid", kind)
    delta = beta * (policy.chosen - policy.rejected)
    if kind not in get_args(CpoKind):
        raise UsageError("no such loss", field="kind", value=kind, remedy=", ".join(get_args(CpoKind)))
    loss = _smoothed(delta, label_smoothing) if kind == "sigmoid" else torch.relu(1 - delta)
    metrics = _metrics(beta * policy.chosen, beta * policy.rejected, policy.chosen, policy.rejected)
    return LossOut(loss, metrics)


def _smoothed(logit: Tensor, epsilon: float) -> Tensor:
    """-(1-ε) log σ(x) - ε log σ(-x)."""
    loss = -logsigmoid(logit)
    return loss if epsilon == 0.0 else (1 - epsilon) * loss - epsilon * logsigmoid(-logit)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, to full precision at both ends (Mächler 2012, eq. 7). At 0, where it is -inf, that of the
    largest number below."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -math.log(2)
    # Each branch is given numbers it is at home with: a where's unused side still has a gradient, and inf · 0 is NaN.
    close = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    return torch.where(near, close, torch.log1p(-torch.exp(torch.where(near, -1.0, x))))


@torch.no_grad()
def _metrics(chosen: Tensor, rejected: Tensor, chosen_logps: Tensor, rejected_logps: Tensor) -> dict[str, Tensor]:
    return {
        "rewards/chosen": chosen.detach(),
        "rewards/rejected": rejected.detach(),
        "rewards/accuracies": (chosen > rejected).float(),
        "rewards/margins": (chosen - rejected).detach(),
        "logps/chosen": chosen_logps.detach(),
        "logps/rejected": rejected_logps.detach(),
    }


def check_constants(beta: float, label_smoothing: float = 0.0, smooths: bool = True, kind: str = "") -> None:
    if not beta > 0:
        raise UsageError("must be above 0", field="beta", value=beta, remedy="0.1")
    if not 0 <= label_smoothing < 0.5:
        raise UsageError("labels wrong as often as right, or more, teach nothing", field="label_smoothing",
                         value=label_smoothing, remedy="at least 0, below 0.5")  # fmt: skip
    if label_smoothing and not smooths:
        raise UsageError(f"{kind} has no label smoothing", field="label_smoothing", value=label_smoothing,
                         remedy="0, or kind conservative or robust")  # fmt: skip
