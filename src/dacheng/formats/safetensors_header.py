"""The header of a safetensors file, checked to the last byte before anything trusts it.

Layout (huggingface/safetensors, README): 8 bytes little-endian N; N bytes of JSON {name: {dtype, shape, data_offsets:
[begin, end]}, "__metadata__": {text: text}}, offsets relative to byte 8 + N; then the data, which the tensors cover
exactly once.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.json_files import parse_json

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
MAX_DIMENSIONS = 64
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: bytes [begin, end) of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    tensors: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Raises DamagedFile naming the file, the tensor and what is wrong; DachengError when there is no such file."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise _damaged(path, f"the file ends inside its header ({size} bytes)", "header length", length)
            if length > MAX_HEADER_BYTES:
                raise _damaged(path, f"the header is over {MAX_HEADER_BYTES} bytes", "header length", length)
            text = file.read(length)
    except OSError as error:
        raise DachengError(
            f"cannot open {path}: {error.strerror}", field="path", value=str(path), remedy="check the path"
        ) from None
    if not text.startswith(b"{"):
        raise _damaged(path, "this is no safetensors file", "header", text[:16])
    try:
        items: dict[str, Any] = parse_json(text)
    except ValueError as error:
        raise _damaged(path, f"the header is not valid JSON: {error}", "header", text[:64]) from None
    metadata = items.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "the metadata must map text to text", "__metadata__", metadata)
    tensors = {name: _entry(path, name, item) for name, item in items.items()}
    _check_cover(path, tensors, size - 8 - length)
    return Header(tensors, metadata)


def _entry(path: Path, name: str, item: Any) -> Entry:
    if not isinstance(item, dict) or set(item) != _KEYS:
        raise _damaged(path, "a tensor is described by dtype, shape and data_offsets", name, item)
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _damaged(path, "the dtype is not one of " + ", ".join(ITEM_BYTES), name, dtype)
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _damaged(path, "a shape is a list of at most 64 non-negative integers", name, shape)
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, "data_offsets are two integers, begin <= end", name, offsets)
    begin, end = offsets
    if math.prod(max(size, 1) for size in shape) * ITEM_BYTES[dtype] >= 2**63:
        raise _damaged(path, "the shape is larger than any memory", name, shape)
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if needed != end - begin:
        raise _damaged(
            path, f"{dtype} of shape {shape} takes {needed} bytes, the offsets say {end - begin}", name, offsets
        )
    return Entry(dtype, tuple(shape), begin, end)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) is int and x >= 0 for x in value)


def _check_cover(path: Path, tensors: dict[str, Entry], data_bytes: int) -> None:
    """The tensors, in the order of their offsets, follow each other from the first byte of the data to the last."""
    position, before = 0, "the header"
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.end > data_bytes:
            raise _damaged(path, f"the file ends inside this tensor: {data_bytes} bytes of data", name, entry.end)
        if entry.begin != position:
            what = "overlaps" if entry.begin < position else f"leaves {entry.begin - position} bytes unused after"
            raise _damaged(path, f"the tensor {what} {before}", name, [entry.begin, entry.end])
        position, before = entry.end, repr(name)
    if position != data_bytes:
        raise _damaged(path, f"{data_bytes - position} bytes follow the last tensor", "data", data_bytes)


def _damaged(path: Path, problem: str, field: str, value: object) -> DamagedFile:
    return DamagedFile(f"{path}: {problem}", field=field, value=value, remedy="copy or download the file again")
