"""How many weights a mask takes away: a share of them, or all but n of every m in a row."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.errors import UsageError


@dataclass(frozen=True, slots=True)
class Sparsity:
    """ratio: share of zeros. With `of` > 0, `keep` of every `of` neighbours in a row stay (2:4: Mishra et al. 2021)."""

    ratio: float
    keep: int = 0
    of: int = 0

    @classmethod
    def parse(cls, value: float | str | Sparsity) -> Sparsity:
        """0.5, "50%" or "2:4". Raises UsageError for anything else, and for a share that is not in (0, 1)."""
        if isinstance(value, Sparsity):
            return value
        text = str(value).strip()
        if found := re.fullmatch(r"(\d{1,4}):(\d{1,4})", text):
            keep, of = int(found[1]), int(found[2])
            if 1 <= keep < of:
                return cls(1 - keep / of, keep, of)
        elif re.fullmatch(r"\d*\.?\d+(e-\d+)?%?", text):
            ratio = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
            if 0 < ratio < 1:
                return cls(ratio)
        raise UsageError("not a sparsity", field="sparsity", value=value, remedy="a share as 0.5, or n of m as 2:4")

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}" if self.of else f"{100 * self.ratio:.6g}%"


def nm_mask(score: Tensor, keep: int, of: int) -> Tensor:
    """score (out, in) -> bool (out, in): the `keep` highest of every `of` neighbours in a row stay.

    Raises UsageError when a row cannot be cut into groups of `of`.
    """
    check_groups(score.shape[1], of)
    groups = score.unflatten(1, (-1, of))
    # the lowest are taken away, not the highest kept: on ties these are the paper's choices
    lowest = groups.topk(of - keep, dim=-1, largest=False).indices
    return torch.ones_like(groups, dtype=torch.bool).scatter_(-1, lowest, False).flatten(1)


def row_mask(score: Tensor, ratio: float) -> Tensor:
    """score (out, in) -> bool (out, in): in every row the int(ratio · in) lowest go, the first ones on ties."""
    lowest = score.sort(dim=1, stable=True).indices[:, : int(score.shape[1] * ratio)]
    return torch.ones_like(score, dtype=torch.bool).scatter_(1, lowest, False)


def check_groups(width: int, of: int) -> None:
    if width % of:
        raise UsageError(
            f"a row of {width} weights has no whole number of groups of {of}", field="sparsity", value=of,
            remedy="give a share such as 0.5, or leave this map out",
        )  # fmt: skip


def share_of_zeros(weight: Tensor) -> float:
    return float((weight == 0).sum()) / max(1, weight.numel())
