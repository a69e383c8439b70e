"""Products with frozen maps: a gradient for x, none for the weights, and no copy of packed ones kept as floats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dacheng.nn.linear import Dense
from dacheng.nn.packed import Packed


def frozen_product(base: nn.Module, x: Tensor) -> Tensor:
    """base(x). Of a packed map under a gradient, the blocks are turned into floats again on the way back, in place of
    being kept as floats from the forward on: what QLoRA saves of memory (Dettmers et al. 2023, eq. 5 and 6)."""
    needed = isinstance(base, Packed) and torch.is_grad_enabled() and x.requires_grad
    if not needed or torch.is_autocast_enabled(x.device.type):
        return base(x)
    return _Product.apply(x, base)  # type: ignore[no-any-return]


def low_rank_product(base: Dense | Packed, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """base(x) + scale · (x Aᵀ) Bᵀ as one step of the graph, for training: x (..., in), a (r, in), b (out, r).

    Gradients for x, A and B by hand. What is kept for the way back is x and x Aᵀ, and the sums are made in place: the
    same numbers as the plain formula, up to the order of a sum, with a third of its passes over memory.
    """
    return _LowRank.apply(x, a, b, base, scale)  # type: ignore[no-any-return]


def _floats(base: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias."""
    if isinstance(base, Packed):
        return base.qtensor.dequantize(dtype), None if base.bias is None else base.bias.to(dtype)
    assert isinstance(base, Dense)
    return base.weight.detach(), None if base.bias is None else base.bias.detach()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Packed) -> Tensor:
        ctx.base = base
        weight, bias = _floats(base, x.dtype)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        return grad_y @ ctx.base.qtensor.dequantize(grad_y.dtype), None


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, base: Dense | Packed, scale: float) -> Tensor:
        ctx.base, ctx.scale = base, scale
        x_NI = x.reshape(-1, x.shape[-1])
        weight, bias = _floats(base, x.dtype)
        low_NR = x_NI @ a.t()
        y_NO = nn.functional.linear(x_NI, weight, bias)
        y_NO.addmm_(low_NR, b.t(), alpha=scale)
        ctx.save_for_backward(x_NI, low_NR, a, b)
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x_NI, low_NR, a, b = ctx.saved_tensors
        grad_NO = grad_y.reshape(-1, grad_y.shape[-1])
        grad_x = grad_a = grad_b = None
        grad_low_NR = (grad_NO @ b).mul_(ctx.scale)
        if ctx.needs_input_grad[2]:
            grad_b = (grad_NO.t() @ low_NR).mul_(ctx.scale)
        if ctx.needs_input_grad[1]:
            grad_a = grad_low_NR.t() @ x_NI
        if ctx.needs_input_grad[0]:  # not in the lowest adapted maps: nothing below them is trained
            grad_NI = grad_NO @ _floats(ctx.base, grad_NO.dtype)[0]
            grad_x = grad_NI.addmm_(grad_low_NR, a).view(*grad_y.shape[:-1], a.shape[1])
        return grad_x, grad_a, grad_b, None, None
