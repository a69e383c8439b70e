"""The smallest weights go (Han et al. 2015, section 3): the baseline that every other method must beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from dacheng.compress.prune.sparsity import Sparsity, nm_mask, row_mask

Scope = Literal["layer", "row"]


def magnitude(weight: Tensor, sparsity: Sparsity, scope: Scope = "layer") -> Tensor:
    """weight (out, in) -> bool (out, in), True where it stays. scope: what a weight is compared with.

    As in the code of Wanda and SparseGPT, everything up to the |w| of rank int(ratio · n) goes, ties included.
    """
    size = weight.abs().float()
    if sparsity.of:
        return nm_mask(size, sparsity.keep, sparsity.of)
    if scope == "row":
        return row_mask(size, sparsity.ratio)
    return size > _threshold(size.flatten(), sparsity.ratio)


def magnitude_global(weights: Mapping[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """One threshold for all matrices: some are then pruned far more than others. Masks by name."""
    threshold = _threshold(torch.cat([w.abs().float().flatten() for w in weights.values()]), ratio)
    return {name: w.abs().float() > threshold for name, w in weights.items()}


def _threshold(sizes: Tensor, ratio: float) -> Tensor:
    return sizes.kthvalue(int(sizes.numel() * ratio) + 1).values
