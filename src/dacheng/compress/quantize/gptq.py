"""GPTQ (Frantar et al. 2022, algorithm 1): columns are rounded one after the other, and each error is made good, as far
as it can be, by the columns that are still to come.

Equal to the authors' code (IST-DASLab/gptq, gptq.py) where a group is a row, with static groups, or where groups are at
least as wide as a block; with narrower groups their code takes scales from columns that lack the block's corrections,
and ours doesn't.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.compress.hessian import DAMP, TRIES, inverse_factor
from dacheng.errors import UsageError
from dacheng.ops.integers import IntTensor, QSpec, round_codes, scales_of


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
    codes = _rounded(
        w[:, order], inverse.upper, spec, scale, zero, order // columns, block, None if static else columns
    )
    back = torch.empty_like(codes)
    back[:, order] = codes
    return Solved(IntTensor.of(back, scale, zero, spec), inverse.damp)


def _rounded(
    w: Tensor, inverse: Tensor, spec: QSpec, scale: Tensor, zero: Tensor, group_of: Tensor, block: int, live: int | None
) -> Tensor:
    """Codes (out, in) of the columns as they stand in w. live: columns of a group whose scales are taken anew, into
    `scale` and `zero`, when its first column's turn comes; None: they stay."""
    _rows, width = w.shape
    groups = group_of.tolist()
    codes = torch.empty_like(w)
    live = None if live == width else live
    for start in range(0, width, block):
        stop = min(start + block, width)
        part, factor = w[:, start:stop].clone(), inverse[start:stop, start:stop]
        errors = torch.empty_like(part)
        for i in range(stop - start):
            column = part[:, i]
            g = groups[start + i]
            if live is not None and (start + i) % live == 0:
                inside = part[:, i : i + live] if live <= stop - start - i else w[:, start + i : start + i + live]
                scale[:, g], zero[:, g] = scales_of(inside, spec)
            code = round_codes(column, scale[:, g], zero[:, g], spec.top)
            codes[:, start + i] = code
            error = (column - (code - zero[:, g]) * scale[:, g]) / factor[i, i]
            part[:, i:] -= error[:, None] * factor[i, i:]
            errors[:, i] = error
        w[:, stop:] -= errors @ inverse[start:stop, stop:]
    return codes
