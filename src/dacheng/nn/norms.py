"""Normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, over the last dimension (Zhang & Sennrich 2019, eq. 4).

    Computed in float32 whatever the input's dtype, as the reductions of the house are. Without `weight` it has no
    parameters.
    """

    def __init__(self, width: int, eps: float, weight: bool = True) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width)) if weight else None

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return nn.functional.rms_norm(x, (self.width,), self.weight, self.eps)
        normed = nn.functional.rms_norm(x.float(), (self.width,), None, self.eps).to(x.dtype)
        return normed if self.weight is None else normed * self.weight.to(x.dtype)
