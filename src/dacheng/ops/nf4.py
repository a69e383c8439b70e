"""NF4 (Dettmers et al. 2023, section 3 and appendix E): sixteen levels at the quantiles of a normal distribution, for
blocks of 64 values that share their absmax; and those absmax values in eight bits (double quantisation).

Codes and levels equal bitsandbytes' to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.ops.block_formats import NF4
from dacheng.ops.dequantize import NF4_LEVELS as LEVELS
from dacheng.ops.qtensor import QTensor

BLOCK, ABSMAX_BLOCK = 64, 256
_CHUNK = 2**20


@cache
def dynamic_map() -> Tensor:
    """The 256 levels of bitsandbytes' eight-bit numbers (Dettmers 2015): the exponent's bits and the fraction's share a
    byte, so that small values keep their digits. (256,) sorted."""
    levels = [0.0, 1.0]
    for exponent in range(7):
        bounds = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = (bounds[:-1] + bounds[1:]) / 2
        levels += (10.0 ** (exponent - 6) * means).tolist() + (-(10.0 ** (exponent - 6)) * means).tolist()
    return torch.tensor(sorted(levels), dtype=torch.float32)


def nearest_level(x: Tensor, levels: Tensor) -> Tensor:
    """Index of the level (sorted) that is nearest to each of x, the lower one of two: uint8."""
    middles = (levels[1:] + levels[:-1]) / 2
    return torch.bucketize(x, middles).to(torch.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class NF4Tensor:
    """shape (out, in); codes (blocks, 32) uint8, the first of two values in the high half of a byte; absmax (blocks,)
    float32, or with double quantisation uint8 codes with `levels` (blocks of 256,) float32 and `offset` ()."""

    shape: torch.Size
    codes: Tensor
    absmax: Tensor
    levels: Tensor | None = None
    offset: Tensor | None = None

    @classmethod
    def from_float(cls, w: Tensor, double: bool = True) -> NF4Tensor:
        """Raises DachengError for values that are not finite or no whole number of blocks."""
        if w.ndim != 2 or w.shape[1] % BLOCK or not bool(w.isfinite().all()):
            raise DachengError(
                f"NF4 takes finite matrices whose rows are a multiple of {BLOCK}", field="weight", value=list(w.shape),
                remedy="leave this map as it is, or use int4",
            )  # fmt: skip
        blocks = w.float().reshape(-1, BLOCK)
        absmax = blocks.abs().amax(1)
        levels = torch.tensor(LEVELS)
        codes = torch.empty(len(blocks), BLOCK // 2, dtype=torch.uint8)
        inverse = torch.where(absmax > 0, 1 / absmax, torch.zeros_like(absmax))
        for start in range(0, len(blocks), _CHUNK // BLOCK):
            stop = start + _CHUNK // BLOCK
            found = nearest_level(blocks[start:stop] * inverse[start:stop, None], levels)
            codes[start:stop] = (found[:, ::2] << 4) | found[:, 1::2]
        if not double:
            return cls(w.shape, codes, absmax)
        offset = absmax.mean()
        padded = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % ABSMAX_BLOCK)).view(-1, ABSMAX_BLOCK)
        second = padded.abs().amax(1)
        scaled = padded / torch.where(second > 0, second, torch.ones_like(second))[:, None]
        return cls(w.shape, codes, nearest_level(scaled, dynamic_map()).flatten()[: len(absmax)], second, offset)

    @property
    def nbytes(self) -> int:
        """As it is stored: 4.127 bits a value with double quantisation, 4.5 without."""
        second = 0 if self.levels is None else 4 * self.levels.numel() + 4
        return self.codes.numel() + self.absmax.numel() * self.absmax.element_size() + second

    def scales(self) -> Tensor:
        """absmax (blocks,) float32."""
        if self.levels is None or self.offset is None:
            return self.absmax
        blocks = torch.arange(len(self.absmax)) // ABSMAX_BLOCK
        return dynamic_map()[self.absmax.long()] * self.levels[blocks] + self.offset

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.to_blocks().dequantize(dtype)

    def to_blocks(self) -> QTensor:
        """With absmax in float32 beside the codes: no kernel multiplies with them, but they stay packed in memory."""
        data = torch.cat([self.scales()[:, None].contiguous().view(torch.uint8), self.codes], dim=1)
        return QTensor(NF4, self.shape, data.reshape(self.shape[0], -1))
