"""SmoothQuant (Xiao et al. 2022, eq. 4): what makes inputs hard to round, a few channels with large values, is moved
into the weights, before both are rounded to eight bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dacheng.nn.linear import Dense

ALPHA = 0.5
_SMALLEST = 1e-5  # of the authors' code


def smooth_scales(absmax: Tensor, weights: Sequence[Tensor], alpha: float = ALPHA) -> Tensor:
    """s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), (in,): inputs are divided by it and columns multiplied.

    absmax (in,) of the inputs; weights (out, in) each, all that read this input.
    """
    largest = torch.stack([weight.float().abs().amax(0) for weight in weights]).amax(0).clamp(min=_SMALLEST)
    return (absmax.pow(alpha) / largest.pow(1 - alpha)).clamp(min=_SMALLEST)


def round_tokens(x: Tensor, bits: int = 8) -> Tensor:
    """x (..., in), each token rounded to whole multiples of its absmax / (2^(bits-1) - 1), as floats."""
    steps = 2 ** (bits - 1) - 1
    scale = x.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST) / steps
    return torch.round(x / scale) * scale


class RoundedInputs(nn.Module):
    """A Dense whose inputs are rounded token by token: W8A8 in the paper's form, for comparisons. The engine's kernels
    round in blocks of 32 instead, which is finer."""

    def __init__(self, base: Dense, bits: int = 8) -> None:
        super().__init__()
        self.base, self.bits = base, bits
        self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, x: Tensor, adapter_ids: Tensor | None = None) -> Tensor:
        return self.base(round_tokens(x, self.bits))


def round_inputs(model: nn.Module, bits: int = 8) -> None:
    """Puts RoundedInputs in the place of every Dense of the blocks."""
    for block in model.blocks:  # type: ignore[union-attr]
        for name, module in list(block.named_modules()):
            if isinstance(module, Dense):
                parent, _, last = name.rpartition(".")
                setattr(block.get_submodule(parent), last, RoundedInputs(module, bits))
