"""Normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, over the last dimension (Zhang & Sennrich 2019, eq. 4).

    Computed in float32 whatever the input's dtype, as the reductions of the house are. Without `weight` it has no
    parameters. `offset`: the gain is 1 + weight, multiplied in float32 too (Gemma).
    """

    def __init__(self, width: int, eps: float, weight: bool = True, offset: bool = False) -> None:
        super().__init__()
        self.width, self.eps, self.offset = width, eps, offset
        self.weight = nn.Parameter(torch.zeros(width) if offset else torch.ones(width)) if weight else None

    def forward(self, x: Tensor) -> Tensor:
        if self.offset and self.weight is not None:
            normed = nn.functional.rms_norm(x.float(), (self.width,), None, self.eps)
            return (normed * (1.0 + self.weight.float())).to(x.dtype)
        if x.dtype == torch.float32:
            return nn.functional.rms_norm(x, (self.width,), self.weight, self.eps)
        normed = nn.functional.rms_norm(x.float(), (self.width,), None, self.eps).to(x.dtype)
        return normed if self.weight is None else normed * self.weight.to(x.dtype)

    @torch.no_grad()
    def reset(self) -> None:
        """Makes the gain 1."""
        if self.weight is not None:
            self.weight.fill_(0.0 if self.offset else 1.0)


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) · weight + bias, over the last dimension (Ba et al. 2016, eq. 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return nn.functional.layer_norm(x, (self.width,), weight, bias, self.eps)

    @torch.no_grad()
    def reset(self) -> None:
        self.weight.fill_(1.0)
        self.bias.zero_()


def make_norm(kind: str, width: int, eps: float, weight: bool, offset: bool) -> RMSNorm | LayerNorm:
    """kind: "rms" or "layer"."""
    return LayerNorm(width, eps) if kind == "layer" else RMSNorm(width, eps, weight, offset)
