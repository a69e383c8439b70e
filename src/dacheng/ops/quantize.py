"""Floats to blocks of GGUF, equal to the last bit to the reference (gguf.quants of llama.cpp)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.ops.block_formats import BlockFormat, block_format

_CHUNK = 2**19  # values at a time
_HALF_MAX = 65504.0  # largest float16: what scales and minima are stored in


def quantize(x: Tensor, format: str | BlockFormat) -> Tensor:
    """x (..., width) of any float dtype -> bytes (..., row bytes) uint8.

    Raises DachengError when a row is no whole number of blocks, and for a format that is only read. Values must be
    finite and within `largest(format)`: see there.
    """
    format = block_format(format)
    row_bytes = format.row_bytes(x.shape[-1])
    if format.dtype is not None:
        floats = _bfloat16(x.float()) if format.dtype == torch.bfloat16 else x.to(format.dtype)
        return floats.contiguous().view(torch.uint8).reshape(*x.shape[:-1], row_bytes)
    pack = _PACK.get(format.name)
    if pack is None:
        raise DachengError(
            f"{format.name} is read and not written", field="format", value=format.name,
            remedy="one of F32, F16, BF16, " + ", ".join(_PACK),
        )  # fmt: skip
    values = x.reshape(-1, format.values)
    out = torch.empty(values.shape[0], format.bytes, dtype=torch.uint8, device=x.device)
    step = max(1, _CHUNK // format.values)
    for start in range(0, values.shape[0], step):
        out[start : start + step] = pack(values[start : start + step].float())
    return out.reshape(*x.shape[:-1], row_bytes)


def largest(format: str | BlockFormat) -> float:
    """The greatest magnitude that the format holds for sure: beyond, a scale or a value would become infinite."""
    name = block_format(format).name
    steps = {"Q8_0": 127.0, "Q4_0": 8.0, "Q4_1": 1.0, "F16": 1.0}.get(name)
    return torch.finfo(torch.bfloat16 if name == "BF16" else torch.float32).max if steps is None else _HALF_MAX * steps


def _bfloat16(x: Tensor) -> Tensor:
    """To nearest, ties to even; a NaN keeps its sign and the upper half of its payload, and becomes quiet."""
    rounded = x.to(torch.bfloat16)
    if not (nan := x.isnan()).any():
        return rounded
    bits = (x.contiguous().view(torch.int32) >> 16) | 64
    return torch.where(nan, bits.to(torch.int16).view(torch.bfloat16), rounded)


def _bytes(scale: Tensor) -> Tensor:
    return scale.to(torch.float16).view(torch.uint8)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)


def _nibbles(quants: Tensor) -> Tensor:
    """(N, 32) uint8 below 16 -> (N, 16): value i in the low half of byte i, value i + 16 in the high half."""
    return quants[:, :16] | (quants[:, 16:] << 4)


def _q8_0(x: Tensor) -> Tensor:
    scale = x.abs().amax(dim=1, keepdim=True) / 127
    scaled = x * _inverse(scale)
    size = scaled.abs()
    whole = size.floor()
    rounded = scaled.sign() * (whole + (2 * (size - whole)).floor())  # halves away from zero, as C's roundf
    return torch.cat([_bytes(scale), rounded.to(torch.int8).view(torch.uint8)], dim=1)


def _q4_0(x: Tensor) -> Tensor:
    extreme = x.gather(1, x.abs().argmax(dim=1, keepdim=True))  # the first of equals, with its sign
    scale = extreme / -8
    # The reference rounds a product in double precision to float32 before it cuts.
    quants = (x.double() * _inverse(scale).double() + 8.5).float().trunc().to(torch.uint8).clamp(0, 15)
    return torch.cat([_bytes(scale), _nibbles(quants)], dim=1)


def _q4_1(x: Tensor) -> Tensor:
    low, high = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
    scale = (high - low) / 15
    quants = ((x - low) * _inverse(scale) + 0.5).trunc().to(torch.uint8).clamp(0, 15)
    return torch.cat([_bytes(scale), _bytes(low), _nibbles(quants)], dim=1)


_PACK: dict[str, Callable[[Tensor], Tensor]] = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1}
