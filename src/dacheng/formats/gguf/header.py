"""The header of a GGUF file, checked to the last byte before anything trusts it.

Layout (ggml's docs/gguf.md): "GGUF", version, tensor count, key count; the keys, each a name, a type and a value; the
tensors, each a name, dimensions (innermost first), a type and an offset; padding to `general.alignment`; the data.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dacheng.errors import DachengError, DamagedFile
from dacheng.ops.block_formats import BY_ID, OTHER_TYPES, BlockFormat, byte_shape

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # where general.alignment says nothing
MAX_ALIGNMENT = 2**20
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_NAME = 2**16 - 1
MAX_NESTING = 3
# Values of all arrays together: the largest vocabularies have a million pieces, merges and scores. In Python each takes
# more memory than in the file, and this is what bounds it.
MAX_ITEMS = 2**22
MAX_KEYS, MAX_TENSORS = 2**16, 2**17  # likewise; the largest models have about a thousand tensors
_SCALARS = {
    0: ("B", 1), 1: ("b", 1), 2: ("H", 2), 3: ("h", 2), 4: ("I", 4), 5: ("i", 4), 6: ("f", 4), 7: ("B", 1),
    10: ("Q", 8), 11: ("q", 8), 12: ("d", 8),
}  # fmt: skip
BOOL, STRING, ARRAY = 7, 8, 9
_MIN_KEY, _MIN_TENSOR, _MIN_ITEM = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8, {STRING: 8, ARRAY: 12}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: `size` bytes from byte `begin` of the file. `shape` is outermost first, as torch has it."""

    format: BlockFormat
    shape: torch.Size
    begin: int
    size: int


@dataclass(frozen=True, slots=True)
class Header:
    version: int
    alignment: int
    metadata: dict[str, Any]
    tensors: dict[str, Entry]


def read_header(buffer: Any, path: Path) -> Header:
    """`buffer` is the mapped file. Raises DamagedFile naming what is wrong and where; DachengError for a kind of file
    that is sound and not supported: another byte order, version or type of numbers."""
    return _Reader(buffer, path).header()


class _Reader:
    def __init__(self, buffer: Any, path: Path) -> None:
        self.buffer, self.size, self.path = buffer, len(buffer), path
        self.position, self.items = 0, 0

    def header(self) -> Header:
        version = self.version()
        tensors, keys = self.unpack("<QQ", "counts")
        for count, most, least, field in (
            (keys, MAX_KEYS, _MIN_KEY, "key count"),
            (tensors, MAX_TENSORS, _MIN_TENSOR, "tensor count"),
        ):
            self.fits(count, least, field)
            if count > most:
                raise self.damaged(f"a file has at most {most}", field, count)
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            name = self.text("a key's name", MAX_NAME)
            if name in metadata:
                raise self.damaged("the key is there twice", name, metadata[name])
            (kind,) = self.unpack("<I", name)
            metadata[name] = self.value(kind, name)
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self.damaged("an alignment is a power of two", "general.alignment", alignment)
        infos = [self.tensor() for _ in range(tensors)]
        return Header(version, alignment, metadata, self.placed(infos, alignment))

    def version(self) -> int:
        if bytes(self.buffer[:4]) != MAGIC:
            raise self.damaged("this is no GGUF file", "magic", bytes(self.buffer[:4]))
        self.position = 4
        (version,) = self.unpack("<I", "version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped in VERSIONS:
                raise self.unsupported("the file is big-endian", "byte order", "big", "convert it to little-endian")
            raise self.unsupported(
                "this version of GGUF is not supported", "version", version, "convert the model again: 2 and 3 are read"
            )
        return version

    # --- primitives ---------------------------------------------------------------------------------------------------
    def unpack(self, form: str, field: str) -> tuple[Any, ...]:
        end = self.position + struct.calcsize(form)
        if end > self.size:
            raise self.damaged(f"the file ends inside its header ({self.size} bytes)", field, self.position)
        values = struct.unpack_from(form, self.buffer, self.position)
        self.position = end
        return values

    def fits(self, count: int, least: int, field: str) -> None:
        """Before anything is made of `count`: so many of at least `least` bytes must still be there."""
        if count * least > self.size - self.position:
            raise self.damaged(f"the file is too short for this count ({self.size} bytes)", field, count)

    def text(self, field: str, limit: int | None = None) -> str:
        (length,) = self.unpack("<Q", field)
        self.fits(length, 1, f"length of {field}")
        if limit is not None and length > limit:
            raise self.damaged(f"a name has at most {limit} bytes", field, length)
        raw = self.buffer[self.position : self.position + length]
        self.position += length
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            raise self.damaged("text must be UTF-8", field, bytes(raw[:64])) from None

    def value(self, kind: int, field: str, depth: int = 0) -> Any:
        if kind == STRING:
            return self.text(field)
        if kind == ARRAY:
            return self.array(field, depth + 1)
        if kind not in _SCALARS:
            raise self.damaged("there is no such type of value", field, kind)
        (value,) = self.unpack("<" + _SCALARS[kind][0], field)
        return self.truth(value, field) if kind == BOOL else value

    def array(self, field: str, depth: int) -> list[Any]:
        kind, count = self.unpack("<IQ", field)
        if depth > MAX_NESTING:
            raise self.damaged("arrays are nested too deeply", field, depth)
        if kind not in _SCALARS and kind not in _MIN_ITEM:
            raise self.damaged("there is no such type of value", field, kind)
        self.fits(count, _MIN_ITEM.get(kind) or _SCALARS[kind][1], f"length of {field}")
        self.items += count
        if self.items > MAX_ITEMS:
            raise self.damaged(f"the arrays hold over {MAX_ITEMS} values", field, count)
        if kind == STRING:
            return self.texts(count, field)
        if kind == ARRAY:
            return [self.array(field, depth + 1) for _ in range(count)]
        values = list(self.unpack(f"<{count}{_SCALARS[kind][0]}", field))
        return [self.truth(value, field) for value in values] if kind == BOOL else values

    def texts(self, count: int, field: str) -> list[str]:
        """As `text`, a few times faster: a vocabulary has hundreds of thousands."""
        buffer, position, size = self.buffer, self.position, self.size
        length_at = struct.Struct("<Q").unpack_from
        found: list[str] = []
        for index in range(count):
            start = position + 8
            position = start + length_at(buffer, position)[0] if start <= size else size + 1
            if position > size:
                raise self.damaged(f"the file ends inside this array ({size} bytes)", field, index)
            try:
                found.append(str(buffer[start:position], "utf-8"))
            except UnicodeDecodeError:
                raise self.damaged("text must be UTF-8", f"{field}[{index}]", buffer[start:position][:64]) from None
        self.position = position
        return found

    def truth(self, value: int, field: str) -> bool:
        if value > 1:
            raise self.damaged("a truth value is 0 or 1", field, value)
        return bool(value)

    # --- tensors ------------------------------------------------------------------------------------------------------
    def tensor(self) -> tuple[str, BlockFormat, torch.Size, int]:
        """Name, format, shape, offset in the data."""
        name = self.text("a tensor's name", MAX_NAME)
        (dimensions,) = self.unpack("<I", name)
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.damaged(f"a tensor has 1 to {MAX_DIMENSIONS} dimensions", name, dimensions)
        sizes = self.unpack(f"<{dimensions}Q", name)
        kind, offset = self.unpack("<IQ", name)
        if kind not in BY_ID:
            if kind in OTHER_TYPES:
                raise self.unsupported(
                    f"{OTHER_TYPES[kind]} is not supported", name, kind, "quantise the model in another way"
                )
            raise self.damaged("there is no such type of numbers", name, kind)
        total = 1
        for size in sizes:  # of Python's integers, which do not overflow
            total *= size
            # No format has more than 16 values in a byte.
            if not 1 <= size <= 16 * self.size or total > 16 * self.size:
                raise self.damaged("the shape does not fit the file", name, list(sizes))
        format = BY_ID[kind]
        if sizes[0] % format.values:
            raise self.damaged(f"a row of {format.name} is blocks of {format.values}", name, sizes[0])
        return name, format, torch.Size(reversed(sizes)), offset

    def placed(self, infos: list[tuple[str, BlockFormat, torch.Size, int]], alignment: int) -> dict[str, Entry]:
        """Checks that every tensor is aligned, lies in the file, and on no other."""
        base = -(-self.position // alignment) * alignment
        tensors: dict[str, Entry] = {}
        for name, format, shape, offset in infos:
            rows, row_bytes = byte_shape(shape, format)
            begin, size = base + offset, rows * row_bytes
            if name in tensors:
                raise self.damaged("two tensors have this name", name, list(shape))
            if offset % alignment:
                raise self.damaged(f"a tensor starts at a multiple of {alignment}", name, offset)
            if begin + size > self.size:
                raise self.damaged(f"the file ends inside this tensor ({self.size} bytes)", name, begin + size)
            tensors[name] = Entry(format, shape, begin, size)
        end, before = base, "the header"
        for name, entry in sorted(tensors.items(), key=lambda item: item[1].begin):
            if entry.begin < end:
                raise self.damaged(f"the tensor overlaps {before}", name, entry.begin)
            end, before = entry.begin + entry.size, name
        return tensors

    # --- errors -------------------------------------------------------------------------------------------------------
    def damaged(self, problem: str, field: str, value: object) -> DamagedFile:
        remedy = "copy or download the file again"
        return DamagedFile(f"{self.path}: {problem}", field=field, value=value, remedy=remedy)

    def unsupported(self, problem: str, field: str, value: object, remedy: str) -> DachengError:
        return DachengError(f"{self.path}: {problem}", field=field, value=value, remedy=remedy)
