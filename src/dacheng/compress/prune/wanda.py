"""Pruning by weights and activations (Sun et al. 2023, arXiv 2306.11695): |W| · ‖x‖, compared within each output's
row. No weight is changed, nothing is inverted: one forward of the calibration text and a sort."""

from __future__ import annotations

import torch
from torch import Tensor

from dacheng.compress.prune.sparsity import Sparsity, nm_mask, row_mask


def wanda_score(weight: Tensor, sqnorm: Tensor) -> Tensor:
    """Eq. 1: |W_ij| · ‖x_j‖₂. weight (out, in), sqnorm (in,): Σ x_j² over the calibration tokens, or its mean: rows are
    compared with themselves, so a factor on all inputs changes nothing."""
    return weight.abs().float() * sqnorm.float().sqrt()


def wanda(weight: Tensor, sqnorm: Tensor, sparsity: Sparsity) -> Tensor:
    """weight (out, in), sqnorm (in,) -> bool (out, in), True where it stays.

    Per row (section 3: "per output"), and not over the layer: that is what makes it work on language models, and what
    torchao's sparsifier of the same name does not do.
    """
    score = wanda_score(weight, sqnorm)
    return nm_mask(score, sparsity.keep, sparsity.of) if sparsity.of else row_mask(score, sparsity.ratio)


def apply_mask(weight: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))
