"""The Linear kinds. Dense is the trainable one; packed (quantised) and adapted ones share its call."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dense(nn.Linear):
    """y = x Wᵀ + b with W (out, in), as torch's own. `adapter_ids` (B,) picks an adapter per row where there are any:
    a Dense has none and takes only None."""

    def forward(self, x: Tensor, adapter_ids: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)

    @torch.no_grad()
    def reset(self, std: float, generator: torch.Generator | None) -> None:
        """Normal(0, std) weights (std 0: zeros) and zero bias."""
        if std > 0:
            self.weight.normal_(0.0, std, generator=generator)
        else:
            self.weight.zero_()
        if self.bias is not None:
            self.bias.zero_()
