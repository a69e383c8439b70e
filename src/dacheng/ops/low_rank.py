"""A matrix as the product of two thin ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LowRankTensor:
    """W = B A: a (r, in), b (out, r). Smaller, and fewer products, where r < out · in / (out + in)."""

    a: Tensor
    b: Tensor

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.b.shape[0], self.a.shape[1]))

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.a.dtype

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes

    def to(self, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> LowRankTensor:
        return LowRankTensor(self.a.to(device=device, dtype=dtype), self.b.to(device=device, dtype=dtype))

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The whole matrix (out, in)."""
        out = (self.b.float() @ self.a.float()).to(self.a.dtype)
        return out if dtype is None else out.to(dtype)
