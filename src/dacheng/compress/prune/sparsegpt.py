"""SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774, algorithm 1): columns from left to right; what a pruned weight
leaves undone, the weights to its right make up for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dacheng.compress.hessian import DAMP, inverse_factor
from dacheng.compress.prune.magnitude import magnitude
from dacheng.compress.prune.sparsity import Sparsity, check_groups

BLOCK = 128


@dataclass(slots=True)
class Pruned:
    """weight (out, in) with its zeros, mask (out, in) True where it stays; notes: what did not go as planned."""

    weight: Tensor
    mask: Tensor
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def sparsegpt(weight: Tensor, hessian: Tensor, sparsity: Sparsity, *, block: int = BLOCK, damp: float = DAMP) -> Pruned:
    """weight (out, in), hessian (in, in) = c · Σ x xᵀ of its inputs.

    The mask of a block of columns is chosen when it is reached, by w² / [H⁻¹]ⱼⱼ² over the whole block (of n:m: by each
    group). A Hessian that stays singular with the damping raised a thousandfold: magnitude by rows, without updates,
    and a note. Raises UsageError for groups that do not divide, DachengError for a Hessian that is not finite.
    """
    if sparsity.of:
        check_groups(weight.shape[1], sparsity.of)
        check_groups(block, sparsity.of)
    factor = inverse_factor(hessian, damp)
    if factor is None:
        mask = magnitude(weight, sparsity, "row")
        return Pruned(weight * mask, mask, ["singular Hessian: pruned by magnitude, nothing was made up for"])
    notes = [f"damping raised to {factor.damp:g}"] if factor.raised else []
    w = weight.float().clone()
    w[:, factor.dead] = 0
    mask = torch.ones_like(w, dtype=torch.bool)
    for start in range(0, w.shape[1], block):
        stop = min(start + block, w.shape[1])
        pruned, kept, errors = _block(w[:, start:stop], factor.upper[start:stop, start:stop], sparsity)
        w[:, start:stop], mask[:, start:stop] = pruned, kept
        w[:, stop:] -= errors @ factor.upper[start:stop, stop:]
    return Pruned(w.to(weight.dtype), mask & ~factor.dead, notes)


def _block(w: Tensor, upper: Tensor, sparsity: Sparsity) -> tuple[Tensor, Tensor, Tensor]:
    """The columns w (out, b) of one block -> (pruned, mask, errors in units of the diagonal)."""
    w, pruned, errors = w.clone(), torch.zeros_like(w), torch.zeros_like(w)
    diagonal = upper.diagonal()
    gone = torch.zeros_like(w, dtype=torch.bool)
    if not sparsity.of:
        saliency = w.square() / diagonal.square()
        # everything up to this rank goes, ties included, as in the reference
        gone = saliency <= saliency.flatten().kthvalue(int(saliency.numel() * sparsity.ratio) + 1).values
    for i in range(w.shape[1]):
        if sparsity.of and i % sparsity.of == 0:
            group = slice(i, i + sparsity.of)
            saliency = w[:, group].square() / diagonal[group].square()
            lowest = saliency.topk(sparsity.of - sparsity.keep, dim=1, largest=False).indices
            gone.scatter_(1, i + lowest, True)
        pruned[:, i] = w[:, i].masked_fill(gone[:, i], 0)
        errors[:, i] = (w[:, i] - pruned[:, i]) / diagonal[i]
        w[:, i:] -= errors[:, i : i + 1] * upper[i, i:]
    return pruned, ~gone, errors
