"""Blocks of GGUF to floats, in plain torch, equal to the last bit to the reference (gguf.quants, ggml-quants.c).

Each function takes blocks (N, bytes) uint8 and gives values (N, values) float32. The order of the multiplications is
the reference's, since it decides the last bit; names in the comments are those of ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.ops.block_formats import BlockFormat, block_format

# Values at a time. What is between bytes and floats stays in the cache and never doubles the model; and just below the
# 2^15 elements from which torch wakes its threads for each of a dozen small operations: on a busy machine, that was six
# times slower than one thread.
_CHUNK = 31 * 2**10
_IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_MXFP4_LEVELS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # e2m1, doubled

NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def dequantize(raw: Tensor, format: str | BlockFormat, dtype: torch.dtype = torch.float32) -> Tensor:
    """raw (..., bytes) uint8, whole blocks in the last dimension -> values (..., width) of `dtype`.

    Values are computed in float32 and rounded to `dtype` once. Raises DachengError when the bytes are no whole number
    of blocks, or no bytes.
    """
    format = block_format(format)
    if raw.dtype != torch.uint8 or raw.ndim == 0 or raw.shape[-1] % format.bytes:
        raise DachengError(
            f"{format.name} takes bytes in blocks of {format.bytes}",
            field="raw",
            value=f"{raw.dtype} {list(raw.shape)}",
            remedy="pass the bytes of whole rows",
        )
    shape = (*raw.shape[:-1], raw.shape[-1] // format.bytes * format.values)
    if format.dtype is not None:
        return _as_floats(raw, format.dtype).reshape(shape).to(dtype)
    blocks = raw.reshape(-1, format.bytes)
    expand = _EXPAND[format.name]
    out = torch.empty(blocks.shape[0], format.values, dtype=dtype, device=raw.device)
    step = max(1, _CHUNK // format.values)
    for start in range(0, blocks.shape[0], step):
        out[start : start + step] = expand(blocks[start : start + step])
    return out.reshape(shape)


def _as_floats(raw: Tensor, dtype: torch.dtype) -> Tensor:
    """A view where the address allows it, else a copy."""
    if raw.is_contiguous() and raw.data_ptr() % dtype.itemsize == 0 and raw.storage_offset() % dtype.itemsize == 0:
        return raw.view(dtype)
    return raw.clone(memory_format=torch.contiguous_format).view(dtype)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of each block: (N, 1) float32."""
    return blocks[:, at : at + 2].clone(memory_format=torch.contiguous_format).view(torch.float16).float()


def _fields(data: Tensor, bits: int, group: int) -> Tensor:
    """Unsigned fields of `bits` bits. Of each `group` bytes, first all their lowest fields, then the next (N, -1).

    One shift after the other over all bytes: twice as fast as a shift by a tensor, whose inner loops are short.
    """
    grouped = data.reshape(data.shape[0], -1, group)
    out = torch.empty(*grouped.shape[:2], 8 // bits, group, dtype=torch.uint8, device=data.device)
    mask = (1 << bits) - 1
    for i in range(8 // bits):
        if i == 0:
            torch.bitwise_and(grouped, mask, out=out[:, :, i])
        else:
            torch.bitwise_right_shift(grouped, i * bits, out=out[:, :, i])
            if (i + 1) * bits < 8:
                out[:, :, i].bitwise_and_(mask)
    return out.reshape(data.shape[0], -1)


def _signed(fields: Tensor, offset: int) -> Tensor:
    return fields.view(torch.int8).sub_(offset).float()


def _q4_0(b: Tensor) -> Tensor:
    return _signed(_fields(b[:, 2:], 4, 16), 8).mul_(_half(b, 0))


def _q4_1(b: Tensor) -> Tensor:
    return _fields(b[:, 4:], 4, 16).float().mul_(_half(b, 0)).add_(_half(b, 2))


def _fifth_bits(b: Tensor, at: int) -> Tensor:
    """Bit i of the little-endian word at `at` belongs to value i: (N, 32), already shifted to bit 4."""
    return _fields(b[:, at : at + 4], 1, 1) << 4


def _q5_0(b: Tensor) -> Tensor:
    return _half(b, 0) * _signed(_fields(b[:, 6:], 4, 16) | _fifth_bits(b, 2), 16)


def _q5_1(b: Tensor) -> Tensor:
    return _half(b, 0) * (_fields(b[:, 8:], 4, 16) | _fifth_bits(b, 4)).float() + _half(b, 2)


def _q8_0(b: Tensor) -> Tensor:
    return b[:, 2:].contiguous().view(torch.int8).float().mul_(_half(b, 0))


def _q2_k(b: Tensor) -> Tensor:
    scales, quants = b[:, :16], _fields(b[:, 16:80], 2, 32).reshape(-1, 16, 16).float()
    scale = (_half(b, 80) * (scales & 15).float()).unsqueeze(-1)
    minimum = (_half(b, 82) * (scales >> 4).float()).unsqueeze(-1)
    return (scale * quants - minimum).reshape(-1, 256)


def _q3_k(b: Tensor) -> Tensor:
    low, high = _fields(b[:, 96:104], 4, 8), _fields(b[:, 104:108], 2, 4)  # 16 scales of 6 bits: 4 + 2
    scale = (_half(b, 108) * _signed(low | (high << 4), 32)).unsqueeze(-1)
    absent = _fields(b[:, :32], 1, 32) ^ 1  # hmask: where the bit is 0, four is taken off
    quants = (_fields(b[:, 32:96], 2, 32).view(torch.int8) - (absent << 2).view(torch.int8)).float()
    return (scale * quants.reshape(-1, 16, 16)).reshape(-1, 256)


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 6-bit scales and eight 6-bit minima from 12 bytes (get_scale_min_k4): (N, 8, 1) float32 each."""
    scale, minimum, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat([scale & 63, (rest & 15) | ((scale >> 2) & 48)], dim=1)
    minima = torch.cat([minimum & 63, (rest >> 4) | ((minimum >> 2) & 48)], dim=1)
    return scales.float(), minima.float()


def _k45(b: Tensor, quants: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(b[:, 4:16])
    scale, minimum = (_half(b, 0) * scales).unsqueeze(-1), (_half(b, 2) * minima).unsqueeze(-1)
    return (scale * quants.reshape(-1, 8, 32).float() - minimum).reshape(-1, 256)


def _q4_k(b: Tensor) -> Tensor:
    return _k45(b, _fields(b[:, 16:], 4, 32))


def _q5_k(b: Tensor) -> Tensor:
    return _k45(b, _fields(b[:, 48:], 4, 32) | (_fields(b[:, 16:48], 1, 32) << 4))


def _q6_k(b: Tensor) -> Tensor:
    quants = _fields(b[:, :128], 4, 64) | (_fields(b[:, 128:192], 2, 32) << 4)
    scale = (_half(b, 208) * b[:, 192:208].contiguous().view(torch.int8).float()).unsqueeze(-1)
    return (scale * _signed(quants, 32).reshape(-1, 16, 16)).reshape(-1, 256)


def _levels(fields: Tensor, levels: tuple[float, ...]) -> Tensor:
    return torch.tensor(levels, dtype=torch.float32, device=fields.device)[fields.int()]


def _iq4_nl(b: Tensor) -> Tensor:
    return _half(b, 0) * _levels(_fields(b[:, 2:], 4, 16), _IQ4_LEVELS)


def _iq4_xs(b: Tensor) -> Tensor:
    low, high = _fields(b[:, 4:8], 4, 1), _fields(b[:, 2:4], 2, 1)  # 8 scales of 6 bits: 4 + 2
    scale = (_half(b, 0) * _signed(low | (high << 4), 32)).unsqueeze(-1)
    return (scale * _levels(_fields(b[:, 8:], 4, 16), _IQ4_LEVELS).reshape(-1, 8, 32)).reshape(-1, 256)


def _mxfp4(b: Tensor) -> Tensor:
    exponent = b[:, :1].int()  # e8m0, halved because the levels are doubled; 0 and 1 are subnormal floats
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    return bits.view(torch.float32) * _levels(_fields(b[:, 1:], 4, 16), _MXFP4_LEVELS)


def _nf4(b: Tensor) -> Tensor:
    absmax = b[:, :4].clone(memory_format=torch.contiguous_format).view(torch.float32)
    codes = torch.stack([b[:, 4:] >> 4, b[:, 4:] & 15], dim=2).reshape(-1, 64)  # the first value in the high half
    return _levels(codes, NF4_LEVELS) * absmax


_EXPAND: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4,
    "NF4": _nf4,
}  # fmt: skip
