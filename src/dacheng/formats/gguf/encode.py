"""Keys and tensor descriptions as the bytes of a GGUF header (version 3, little-endian)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from dacheng.errors import DachengError
from dacheng.formats.gguf.header import ALIGNMENT, ARRAY, BOOL, MAGIC, STRING
from dacheng.ops.block_formats import BlockFormat

VERSION = 3
_U32, _I32, _F32, _U64, _I64 = (4, "I"), (5, "i"), (6, "f"), (10, "Q"), (11, "q")


def encode_header(
    metadata: Mapping[str, Any], tensors: Sequence[tuple[str, BlockFormat, tuple[int, ...], int]]
) -> bytes:
    """Everything before the data, padded. `tensors`: name, format, shape (outermost first), offset in the data.

    Integers become uint32 (int32 when negative, 64 bits when longer) and int32 in lists, floats float32: what llama.cpp
    asks for under its own keys. Raises DachengError for a value that GGUF cannot hold.
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for name, value in metadata.items():
        kind, raw = _encoded(name, value)
        parts += [_text(name, name), struct.pack("<I", kind), raw]
    for name, format, shape, offset in tensors:
        parts.append(_text(name, name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
        parts.append(struct.pack("<IQ", format.id, offset))
    head = b"".join(parts)
    return head + b"\0" * padding(len(head))


def padding(length: int) -> int:
    """Zeros behind `length` bytes, up to the alignment."""
    return -length % ALIGNMENT


def _encoded(name: str, value: Any) -> tuple[int, bytes]:
    if isinstance(value, str):
        return STRING, _text(name, value)
    if isinstance(value, list | tuple):
        return ARRAY, _array(name, list(value))
    if isinstance(value, bool):
        return BOOL, struct.pack("<B", value)
    if isinstance(value, int):
        kind, form = _U32 if 0 <= value < 2**32 else _I32 if -(2**31) <= value < 0 else _U64 if value > 0 else _I64
        return kind, _packed(name, form, [value])
    if isinstance(value, float):
        return _F32[0], _packed(name, _F32[1], [value])
    raise _unfit(name, value)


def _array(name: str, values: list[Any]) -> bytes:
    kinds = {type(value) for value in values}
    if len(kinds) > 1:
        raise _unfit(name, values[:4])
    found = next(iter(kinds), str)
    if found is str:
        kind, raw = STRING, b"".join(_text(name, value) for value in values)
    elif found is bool:
        kind, raw = BOOL, bytes(values)
    elif found in (int, float):
        kind, form = _I32 if found is int else _F32
        raw = _packed(name, form, values)
    else:
        raise _unfit(name, values[:4])
    return struct.pack("<IQ", kind, len(values)) + raw


def _packed(name: str, form: str, values: list[Any]) -> bytes:
    try:
        return struct.pack(f"<{len(values)}{form}", *values)
    except (struct.error, OverflowError):
        raise _unfit(name, values[:4]) from None


def _text(name: str, value: str) -> bytes:
    try:
        raw = value.encode("utf-8")
    except UnicodeEncodeError:
        raise _unfit(name, value) from None
    return struct.pack("<Q", len(raw)) + raw


def _unfit(name: str, value: object) -> DachengError:
    return DachengError("GGUF cannot hold this value", field=name, value=value, remedy="leave the key out")
