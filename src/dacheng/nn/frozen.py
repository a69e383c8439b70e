"""The product with a frozen packed map, with a gradient for x and without keeping its floats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dacheng.nn.packed import Packed


def frozen_product(base: nn.Module, x: Tensor) -> Tensor:
    """base(x). Of a packed map under a gradient, the blocks are turned into floats again on the way back, in place of
    being kept as floats from the forward on: what QLoRA saves of memory (Dettmers et al. 2023, eq. 5 and 6)."""
    needed = isinstance(base, Packed) and torch.is_grad_enabled() and x.requires_grad
    if not needed or torch.is_autocast_enabled(x.device.type):
        return base(x)
    return _Product.apply(x, base)  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Packed) -> Tensor:
        ctx.base = base
        bias = None if base.bias is None else base.bias.to(x.dtype)
        return nn.functional.linear(x, base.qtensor.dequantize(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        return grad_y @ ctx.base.qtensor.dequantize(grad_y.dtype), None
