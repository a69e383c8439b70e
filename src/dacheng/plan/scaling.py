"""The scaling law L(N, D) = E + A/N^α + B/D^β, fitted to runs of several sizes (Hoffmann et al. 2022, approach 3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.errors import UsageError

HUBER = 1e-3  # on the residual of log L, as in Hoffmann et al. 2022, eq. 3
_BEST_STARTS = 4
_FIT_STEPS = 200


@dataclass(frozen=True, slots=True)
class ScalingLaw:
    """loss = E + A / params^alpha + B / tokens^beta. rms: of the residuals of log loss; n: of the runs fitted."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    rms: float
    n: int

    def loss(self, params: float, tokens: float) -> float:
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """(params, tokens) with the lowest loss where 6 · params · tokens = flops (Hoffmann et al. 2022, eq. 4)."""
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        params = g * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return params, flops / 6 / params


def fit(params: Sequence[float], tokens: Sequence[float], losses: Sequence[float]) -> ScalingLaw:
    """The law nearest to the runs: Huber loss on log L, minimised by L-BFGS from a grid of starts, the best kept.

    params, tokens, losses (n,): of one run each, n >= 6; the losses are final ones, each of a full schedule. Raises
    UsageError for fewer runs, values that are not above zero, or runs of only one size or one length (α or β would be
    whatever the start was).
    """
    columns = {"params": params, "tokens": tokens, "losses": losses}
    for name, values in columns.items():
        if len(values) != len(losses) or len(values) < 6:
            raise UsageError("a fit takes six runs or more", field=name, value=len(values), remedy="train more sizes")
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise UsageError("must be above 0", field=name, value=min(values), remedy="leave the run out")
        if name != "losses" and len(set(values)) < 3:
            raise UsageError("too few different values", field=name, value=sorted(set(values)), remedy="vary it more")
    log_n, log_d, log_l = (
        torch.tensor([float(v) for v in values], dtype=torch.float64).log() for values in columns.values()
    )
    mean_n, mean_d = log_n.mean(), log_d.mean()

    def objective(theta: Tensor) -> Tensor:
        """theta (5,): log of A/N^α and of B/D^β at the mean run, log E, α, β. Centred: well conditioned."""
        a, b, e, alpha, beta = theta
        terms = torch.stack([a - alpha * (log_n - mean_n), b - beta * (log_d - mean_d), e.expand_as(log_n)])
        residual = (torch.logsumexp(terms, dim=0) - log_l) / HUBER
        return torch.nn.functional.huber_loss(residual, torch.zeros_like(residual), reduction="sum")

    scale = float(log_l.mean())
    grid = itertools.product((-3.0, -1.5, -0.5), (-3.0, -1.5, -0.5), (-2.0, -0.7, -0.1), (0.2, 0.5), (0.2, 0.5))
    starts = [torch.tensor([scale + a, scale + b, scale + e, x, y], dtype=torch.float64) for a, b, e, x, y in grid]
    starts.sort(key=lambda theta: float(objective(theta)))
    theta = min((_minimise(objective, start) for start in starts[:_BEST_STARTS]), key=lambda t: float(objective(t)))
    a, b, e, alpha, beta = (float(value) for value in theta)
    law = ScalingLaw(
        E=math.exp(e),
        A=math.exp(a + alpha * float(mean_n)),
        B=math.exp(b + beta * float(mean_d)),
        alpha=alpha,
        beta=beta,
        rms=0.0,
        n=len(losses),
    )
    errors = [math.log(law.loss(n, d) / loss) for n, d, loss in zip(params, tokens, losses, strict=True)]
    rms = math.sqrt(sum(error * error for error in errors) / len(errors))
    return ScalingLaw(law.E, law.A, law.B, law.alpha, law.beta, rms, law.n)


def _minimise(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    theta = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=_FIT_STEPS,
        history_size=20,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = objective(theta)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    return theta.detach()
