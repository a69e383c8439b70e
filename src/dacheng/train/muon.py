"""Muon: momentum whose update is orthogonalised, for the matrices of hidden layers (Jordan et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dacheng.errors import UsageError

# Five different quintics chosen to converge fastest from any spectrum: Polar Express (Amsel et al. 2025, algorithm 1;
# 5 steps, lower bound 1e-3, safety 1.02). They reach singular values within a few percent of 1.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# One quintic with the steepest slope at zero: singular values end anywhere in [0.7, 1.2] (Jordan 2024, "Muon").
QUINTIC = (3.4445, -4.7750, 2.0315)
Method = Literal["polar_express", "quintic"]
Scale = Literal["spectral", "rms"]


def orthogonalize(matrices: Tensor, steps: int = 5, method: Method = "polar_express") -> Tensor:
    """The nearest semi-orthogonal matrix U·Vᵀ of each G = U·S·Vᵀ, approximately, by odd polynomials of G.

    matrices (..., rows, columns) -> same shape, singular values near 1. Computed in bfloat16 on an accelerator and in
    float32 on a CPU. `steps` may not pass 5 with polar_express. Raises UsageError for an unknown method or steps.
    """
    limit = len(POLAR_EXPRESS) if method == "polar_express" else 100
    if method not in get_args(Method) or not 1 <= steps <= limit:
        raise UsageError(
            f"{method} is no way to orthogonalise, or not with this many steps (1 to {limit})",
            field="orthogonalisation",
            value=(method, steps),
            remedy="one of " + ", ".join(get_args(Method)),
        )
    polynomials = POLAR_EXPRESS[:steps] if method == "polar_express" else (QUINTIC,) * steps
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT  # the Gram matrix is that of the shorter side
    x = x.to(torch.float32 if x.device.type == "cpu" else torch.bfloat16)
    # The Frobenius norm bounds the spectral norm; the 2% keep rounding from leaving the region of convergence.
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-7)
    for a, b, c in polynomials:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def update_scale(shape: torch.Size, rule: Scale) -> float:
    """The factor between an orthogonal update and the step taken, for a weight of (out, in).

    "spectral": sqrt(max(1, out/in)) (Jordan 2024): one learning rate of about 0.02 for all widths. "rms":
    0.2·sqrt(max(out, in)) (Liu et al. 2025, Moonlight, eq. 4): updates as large as AdamW's, at its learning rates.
    """
    rows, columns = shape[-2], shape[-1]
    return math.sqrt(max(1.0, rows / columns)) if rule == "spectral" else 0.2 * math.sqrt(max(rows, columns))


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay; matrices of one shape are done in one batch.

    Takes parameters of 2 dimensions, or 3 (a stack of matrices, such as experts). cautious: weight decay only where it
    pulls the same way as the update (Chen et al. 2025, Cautious Weight Decay, eq. 3). Raises UsageError for another
    number of dimensions, an unknown method or scale.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        cautious: bool = False,
        steps: int = 5,
        method: Method = "polar_express",
        scale: Scale = "spectral",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "cautious": cautious,
            "steps": steps,
            "method": method,
            "scale": scale,
        }
        super().__init__(params, defaults)
        orthogonalize(torch.eye(2), steps, method)  # a wrong name fails here, not in the first step
        if scale not in get_args(Scale):
            raise UsageError(
                "unknown scale of updates",
                field="muon_scale",
                value=scale,
                remedy="one of " + ", ".join(get_args(Scale)),
            )
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim not in (2, 3):
                    raise UsageError(
                        "Muon is for matrices",
                        field="parameter of shape",
                        value=tuple(p.shape),
                        remedy="give it to AdamW",
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise UsageError("Muon takes no closure", field="closure", remedy="call backward before step")
        for group in self.param_groups:
            by_shape: dict[tuple[Any, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault((p.shape, p.dtype, p.device), []).append(p)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """The step of matrices of one shape. buffer ← μ·buffer + (1-μ)·g, a running mean: only its direction counts."""
        grads = [p.grad for p in parameters if p.grad is not None]
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(buffers, grads, 1.0 - group["momentum"])
        directions = torch._foreach_lerp(grads, buffers, group["momentum"]) if group["nesterov"] else buffers
        batch = orthogonalize(torch.stack(list(directions)), group["steps"], group["method"])
        updates = list(batch.unbind(0))
        if group["weight_decay"] > 0:
            decays = torch._foreach_mul(parameters, group["lr"] * group["weight_decay"])
            if group["cautious"]:
                torch._foreach_mul_(decays, [(u * p >= 0).to(p.dtype) for u, p in zip(updates, parameters)])
            torch._foreach_sub_(parameters, decays)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"] * update_scale(parameters[0].shape, group["scale"]))
