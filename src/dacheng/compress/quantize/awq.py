"""AWQ (Lin et al. 2023, eq. 4 and 5): columns with large inputs are scaled up before they are rounded, and their inputs
down, by a power of the inputs' mean size that is searched for; then weights are clipped where that helps.

The paper's error ‖(Q(W s) s⁻¹ − W) X‖² is tr(Δ H Δᵀ) with H the mean of x xᵀ: no input needs to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dacheng.ops.integers import IntTensor, QSpec

GRID = 20  # powers 0, 1/20 … 19/20, and steps of clipping
SHRINK = 0.5  # a range is cut to half of itself at most


def output_error(delta: Tensor, hessian: Tensor) -> Tensor:
    """Mean squared change of the outputs, summed over rows: delta (out, in) of the weights -> ()."""
    return ((delta @ hessian) * delta).sum()


def awq_scales(weights: Sequence[Tensor], hessian: Tensor, absmean: Tensor, spec: QSpec) -> tuple[Tensor, float]:
    """What the columns of `weights` (out, in) each, which read one input, are multiplied with: (in,) and the power.

    absmean (in,): the inputs' mean size. Power 0 is plain rounding, so the error is never above that of RTN.
    """
    w = torch.cat([weight.float() for weight in weights])
    best, found, power = float("inf"), torch.ones_like(absmean), 0.0
    for step in range(GRID):
        scales = absmean.pow(step / GRID).clamp(min=1e-4)
        scales = scales / (scales.max() * scales.min()).sqrt()
        rounded = IntTensor.from_float(w * scales, spec).dequantize() / scales
        error = float(output_error(rounded - w, hessian))
        if error < best:
            best, found, power = error, scales, step / GRID
    return found, power


def clip_ranges(weight: Tensor, hessian: Tensor, spec: QSpec, rows: int = 128) -> Tensor:
    """The weights (out, in), those of each group cut to the range, of ten from all down to half of it, whose rounding
    changes the group's part of the output least (auto_clip of the authors' code). rows: at a time."""
    columns = spec.columns(weight.shape[1])
    parts = torch.stack([hessian[i : i + columns, i : i + columns] for i in range(0, weight.shape[1], columns)])
    clipped = torch.empty_like(weight, dtype=torch.float32)
    for start in range(0, len(weight), rows):
        w = weight[start : start + rows].float()
        grouped = w.view(len(w), -1, columns)
        largest = grouped.abs().amax(-1, keepdim=True)
        best, limit = torch.full_like(largest, float("inf")), largest
        for step in range(int(SHRINK * GRID)):
            bound = largest * (1 - step / GRID)
            cut = torch.clamp(grouped, -bound, bound)
            rounded = IntTensor.from_float(cut.reshape(w.shape), spec).dequantize().view_as(grouped)
            delta = rounded - grouped
            error = (torch.einsum("ogi,gij->ogj", delta, parts) * delta).sum(-1, keepdim=True)
            better = error < best
            best, limit = torch.where(better, error, best), torch.where(better, bound, limit)
        clipped[start : start + rows] = torch.clamp(grouped, -limit, limit).view_as(w)
    return clipped
