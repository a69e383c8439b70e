"""Reading Protocol Buffers without their compiler: the fields of one message, and nothing beyond its bytes.

The wire format (protobuf.dev, "Encoding"): a message is a list of fields, each a varint `number << 3 | type` and a
value: 0 a varint, 1 eight bytes, 2 a length and so many bytes, 5 four bytes. Every value is a view into the message,
so a length that lies costs nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from dacheng.errors import DamagedFile

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WIDTH = {FIXED64: 8, FIXED32: 4}


def fields(message: memoryview, what: str) -> Iterator[tuple[int, int, int | memoryview]]:
    """(number, wire type, value) of each field in order. `what` names the message in errors.

    Raises DamagedFile on a field that does not end, a type that no longer exists (groups) or number 0.
    """
    at, end = 0, len(message)
    while at < end:
        key = message[at]
        if key < 0x80:  # nearly always
            at += 1
        else:
            key, at = _varint(message, at, what)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise _damaged(what, "field 0", key)
        value: int | memoryview
        if kind == VARINT:
            value, at = _varint(message, at, what)
            yield number, kind, value
            continue
        if kind == BYTES:
            size, at = _varint(message, at, what)
        elif kind in _WIDTH:
            size = _WIDTH[kind]
        else:
            raise _damaged(what, f"field {number} of unknown type", kind)
        if size > end - at:
            raise _damaged(what, f"field {number} of {size} bytes, {end - at} are left", size)
        yield number, kind, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int, what: str) -> tuple[int, int]:
    """The number at `at` and where it ends: seven bits a byte, the lowest first, at most 64 bits."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _damaged(what, "a number that does not end", len(message))
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise _damaged(what, "a number of more than 64 bits", value)


def text_of(value: int | memoryview, field: str) -> str:
    """A string field. Raises DamagedFile when it is none, or no UTF-8."""
    if isinstance(value, int):
        raise _damaged(field, "a number for text", value)
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise _damaged(field, "no UTF-8 text", bytes(value[:40])) from None


def bytes_of(value: int | memoryview, field: str) -> bytes:
    """A bytes field. Raises DamagedFile when it is a number."""
    if isinstance(value, memoryview):
        return bytes(value)
    raise _damaged(field, "a number for bytes", value)


def int_of(value: int | memoryview, field: str) -> int:
    """An int32 field: negative numbers are written in 64 bits. Raises DamagedFile when it is none."""
    if isinstance(value, int):
        return value - (1 << 64) if value >> 63 else value
    raise _damaged(field, "bytes for a number", bytes(value[:40]))


def float_of(value: int | memoryview, field: str) -> float:
    """A float field. Raises DamagedFile when it is none."""
    if isinstance(value, memoryview) and len(value) == 4:
        return struct.unpack("<f", value)[0]
    raise _damaged(field, "no float", value if isinstance(value, int) else bytes(value[:40]))


def _damaged(what: str, problem: str, value: object) -> DamagedFile:
    return DamagedFile(f"{what}: {problem}", field=what, value=value, remedy="copy the file from its source again")
