"""GPTQ (Frantar et al. 2022, algorithm 1): columns are rounded one after the other, and each error is made good, as far
as it can be, by the columns that are still to come.

Equal to the authors' code (IST-DASLab/gptq, gptq.py) where a group is a row, with static groups, or where groups are at
least as wide as a block; with narrower groups their code takes scales from columns that lack the block's corrections,
and ours doesn't.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.compress.hessian import DAMP, TRIES, inverse_factor
from dacheng.errors import UsageError
from dacheng.ops.integers import IntTensor, QSpec, round_codes, scales_of

LAZY = 32
"""Columns that correct each other one by one: few enough that most corrections are made by products of matrices."""


@dataclass(frozen=True, slots=True)
class Solved:
    """damp: what the Hessian needed; None where no damping helped and the weights are rounded to nearest instead."""

    weight: IntTensor
    damp: float | None

    @property
    def note(self) -> str:
        """What the user should know; "" where all went as asked."""
        if self.damp is None:
            return f"its Hessian stays singular with {DAMP * 10**TRIES:g} of damping: rounded to nearest"
        return f"its Hessian needed a damping of {self.damp:g}" if self.damp > DAMP else ""


def gptq(
    weight: Tensor,
    hessian: Tensor,
    spec: QSpec,
    *,
    block: int = 128,
    damp: float = DAMP,
    act_order: bool = False,
    static_groups: bool | None = None,
) -> Solved:
    """weight (out, in), hessian (in, in): the mean of x xᵀ, whatever its scale.

    act_order: columns of large inputs first (their section "act-order"). static_groups: scales of groups come from the
    original weights, so that they lie in the order of the columns; None: only where act_order needs it. A column that
    never has an input becomes 0. A singular Hessian gets ten times the damping, up to three times; then the weights are
    rounded to nearest, and `note` says so. Raises UsageError where the shapes or the group don't fit.
    """
    rows, width = weight.shape
    if hessian.shape != (width, width):
        raise UsageError("the Hessian is not that of this matrix", field="hessian", value=list(hessian.shape),
                         remedy=f"({width}, {width})")  # fmt: skip
    columns = spec.columns(width)
    if spec.group == "tensor":
        raise UsageError("GPTQ has a scale for a row or a group", field="group", value="tensor", remedy="channel")
    static = act_order if static_groups is None else static_groups
    w, h = weight.float().clone(), hessian.float().clone()
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1.0
    order = torch.argsort(h.diagonal(), descending=True) if act_order else torch.arange(width)
    inverse = inverse_factor(h[order][:, order] if act_order else h, damp)
    if inverse is None:
        return Solved(IntTensor.from_float(weight, spec), None)
    w[:, dead] = 0.0
    whole = isinstance(spec.group, str)
    scale, zero = scales_of((weight if whole else w).float().view(rows, -1, columns), spec)
    if not whole and not static:  # blocks of whole groups: scales are then taken when all corrections have arrived
        block = columns if columns >= block else block // columns * columns
    live = None if static or columns == width else columns
    codes = torch.empty_like(w)
    codes[:, order] = _rounded(w[:, order], inverse.upper, spec, scale, zero, order // columns, block, live)
    return Solved(IntTensor.of(codes, scale, zero, spec), inverse.damp)


def _rounded(
    w: Tensor, inverse: Tensor, spec: QSpec, scale: Tensor, zero: Tensor, group_of: Tensor, block: int, live: int | None
) -> Tensor:
    """Codes (out, in) of the columns as they stand in w. live: columns of a group whose scales are taken anew, into
    `scale` and `zero`, when its first column's turn comes; None: they stay.

    Corrections come three times: to the next few columns one by one, to the rest of the block after these, to the rest
    of the matrix after the block (the paper's lazy updates, section 3.3, step 2, once more): most of them are products
    of matrices. A column is a row here, so that it lies in one piece.
    """
    groups, top = group_of.tolist(), spec.top
    lazy = LAZY if live is None else math.gcd(LAZY, live)  # scales are then taken where corrections have arrived
    w_IO, scale_GO, zero_GO = w.t().contiguous(), scale.t().contiguous(), zero.t().contiguous()
    width, rows = w_IO.shape
    codes = torch.empty_like(w_IO)
    for start in range(0, width, block):
        stop = min(start + block, width)
        errors = torch.empty(stop - start, rows)
        for first in range(start, stop, lazy):
            last = min(first + lazy, stop)
            if live is not None and first % live == 0:
                g = groups[first]
                scale_GO[g], zero_GO[g] = scales_of(w_IO[first : first + live].t(), spec)
            part, factor, made = w_IO[first:last], inverse[first:last, first:last], errors[first - start : last - start]
            diagonal = factor.diagonal().tolist()
            for i in range(last - first):
                g = groups[first + i]
                code = codes[first + i] = round_codes(part[i], scale_GO[g], zero_GO[g], top)
                torch.sub(part[i], (code - zero_GO[g]).mul_(scale_GO[g]), out=made[i]).div_(diagonal[i])
                part[i + 1 :].addr_(factor[i, i + 1 :], made[i], alpha=-1)
            w_IO[last:stop].addmm_(inverse[first:last, last:stop].t(), made, alpha=-1)
        w_IO[stop:].addmm_(inverse[start:stop, stop:].t(), errors, alpha=-1)
    scale.copy_(scale_GO.t())
    zero.copy_(zero_GO.t())
    return codes.t()
