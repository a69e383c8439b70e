"""Cross-entropy of a linear head without ever holding all logits: chunk by chunk, gradients made on the way forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
    chunk: int = 512,
) -> tuple[Tensor, Tensor]:
    """Sums of -log p(target) and of logsumexp² over the targets that are not -100.

    hidden (N, D), weight (V, D), targets (N,) int64. Logits are hidden · weightᵀ, then soft_cap·tanh(logits/soft_cap)
    (Gemma 2). The first result has the gradient of cross-entropy + z_loss · logsumexp² (PaLM, section 5); the second
    is a figure without one. Peak memory is chunk × V instead of N × V: the gradient of a chunk is made while its
    logits are there, so nothing is computed twice (the idea of Liger's and Apple's fused heads).
    """
    kept = targets != IGNORED
    if not bool(kept.all()):
        hidden, targets = hidden[kept], targets[kept]
    # Autocast, read here because it is off inside an autograd function.
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return _LinearCrossEntropy.apply(hidden, weight, targets, soft_cap, z_loss, chunk, dtype)  # type: ignore[no-any-return]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        soft_cap: float | None,
        z_loss: float,
        chunk: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        w = weight.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        total_z = torch.zeros_like(total)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        # A frozen head (adapters around the rest) needs none, and it would be a third of the work.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            h, t = hidden[rows].to(dtype), targets[rows].unsqueeze(1)
            logits = (h @ w.t()).float()
            if soft_cap is not None:
                logits = logits.div_(soft_cap).tanh_()
                slope = 1 - logits.square()  # d capped / d raw
                logits.mul_(soft_cap)
            log_norm = logits.logsumexp(dim=1, keepdim=True)
            total += (log_norm - logits.gather(1, t)).sum()
            total_z += log_norm.square().sum()
            if grad_hidden is None:
                continue
            grad = logits.sub_(log_norm).exp_()  # softmax, in place of the logits
            if z_loss:
                grad.mul_(1 + 2 * z_loss * log_norm)
            grad.scatter_add_(1, t, torch.full_like(log_norm, -1.0))
            if soft_cap is not None:
                grad.mul_(slope)
            grad = grad.to(dtype)
            grad_hidden[rows] = (grad @ w).to(hidden.dtype)
            if grad_weight is None:
                continue
            if dtype == torch.float32:
                grad_weight.addmm_(grad.t(), h)
            else:
                grad_weight += grad.t() @ h
        if needs_grad:
            ctx.save_for_backward(grad_hidden, grad_weight)  # save_for_backward takes None
        ctx.mark_non_differentiable(total_z)
        return total, total_z

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _grad_z: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            (grad_hidden * grad_total).to(grad_hidden.dtype) if ctx.needs_input_grad[0] else None,
            grad_weight * grad_total if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
            None,
            None,
        )
