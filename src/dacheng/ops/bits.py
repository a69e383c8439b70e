"""Small whole numbers, several to a byte."""

from __future__ import annotations

import torch
from torch import Tensor

from dacheng.errors import DachengError

_VALUES = 8  # together they take `bits` bytes, whatever bits is
_CHUNK = 2**20


def row_bytes(width: int, bits: int) -> int:
    """Of `width` values: whole groups of eight."""
    return -(-width // _VALUES) * bits


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """codes (rows, width) uint8 below 2^bits -> (rows, row_bytes) uint8: of each eight values, value i in the bits from
    bits · i on, counted from the lowest of the first byte. A row is filled up with zeros."""
    rows, width = codes.shape
    if bits == 8:
        full = codes
        return torch.nn.functional.pad(full, (0, -width % _VALUES))
    padded = torch.nn.functional.pad(codes, (0, -width % _VALUES)).reshape(-1, _VALUES)
    out = torch.empty(padded.shape[0], bits, dtype=torch.uint8)
    for start in range(0, padded.shape[0], _CHUNK):
        part = padded[start : start + _CHUNK].to(torch.int64)
        word = part[:, 0].clone()
        for i in range(1, _VALUES):
            word |= part[:, i] << (bits * i)
        for byte in range(bits):
            out[start : start + _CHUNK, byte] = (word >> (8 * byte)).bitwise_and_(255).to(torch.uint8)
    return out.reshape(rows, -1)


def unpack_bits(data: Tensor, bits: int, width: int) -> Tensor:
    """The codes (rows, width) that `pack_bits` put into data (rows, row_bytes). Raises DachengError for other bytes."""
    if data.dtype != torch.uint8 or data.ndim != 2 or data.shape[1] != row_bytes(width, bits):
        raise DachengError(
            f"{width} codes of {bits} bits take {row_bytes(width, bits)} bytes a row", field="codes",
            value=f"{data.dtype} {list(data.shape)}", remedy="copy the weights again, from one source",
        )  # fmt: skip
    rows = data.shape[0]
    if bits == 8:
        return data[:, :width]
    grouped = data.reshape(-1, bits)
    out = torch.empty(grouped.shape[0], _VALUES, dtype=torch.uint8)
    for start in range(0, grouped.shape[0], _CHUNK):
        part = grouped[start : start + _CHUNK].to(torch.int64)
        word = part[:, 0].clone()
        for byte in range(1, bits):
            word |= part[:, byte] << (8 * byte)
        for i in range(_VALUES):
            out[start : start + _CHUNK, i] = (word >> (bits * i)).bitwise_and_(2**bits - 1).to(torch.uint8)
    return out.reshape(rows, -1)[:, :width].contiguous()
