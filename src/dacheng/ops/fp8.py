"""Eight-bit floats with a scale for each row: four bits of exponent, three of fraction (Micikevicius et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.errors import DachengError

FP8_DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@dataclass(frozen=True, slots=True, eq=False)
class FP8Tensor:
    """values (out, in) float8, scale (out, 1) float32: emulated, since no CPU multiplies in it; only its rounding and
    its bytes are real."""

    values: Tensor
    scale: Tensor

    @classmethod
    def from_float(cls, w: Tensor, format: str = "e4m3") -> FP8Tensor:
        """Each row's absmax becomes the largest value there is. Raises DachengError for values that are not finite."""
        if w.ndim != 2 or not bool(w.isfinite().all()):
            raise DachengError("only a finite matrix is quantised", field="weight", value=list(w.shape),
                               remedy="look for NaN or infinite weights")  # fmt: skip
        dtype = FP8_DTYPES[format]
        absmax = w.float().abs().amax(1, keepdim=True)
        scale = torch.where(absmax > 0, absmax / torch.finfo(dtype).max, torch.ones_like(absmax))
        return cls((w.float() / scale).to(dtype), scale)

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def nbytes(self) -> int:
        return self.values.numel() + 4 * self.scale.numel()

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return (self.values.float() * self.scale).to(dtype)
