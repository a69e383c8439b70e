"""Tensors in safetensors files: read by mapping, written atomically and the same every time."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.atomic import replacing_file
from dacheng.formats.safetensors_header import ITEM_BYTES, MAX_HEADER_BYTES, read_header

ALIGNMENT = 64  # bytes, of the first tensor: a cache line, and the widest vector load
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16,
    "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32, "F32": torch.float32, "U64": torch.uint64,
    "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_tensors(path: Path | str, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of one file, all or those in `names`, on the CPU.

    They are views of a private mapping of the file: nothing is read before it is used, and writing to a tensor copies
    the page and leaves the file alone. Raises DamagedFile when the header does not describe the file exactly, and
    DachengError for a name that is not there.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    header = read_header(path)
    wanted = list(header.tensors) if names is None else list(names)
    for name in wanted:
        if name not in header.tensors:
            raise DachengError(
                f"{path} has no such tensor", field=name, remedy="it has " + ", ".join(sorted(header.tensors)[:8])
            )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: _aligned(file.get_tensor(name)) for name in wanted}
    except SafetensorError as error:  # the reference implementation has the last word
        raise DamagedFile(
            f"{path}: {error}", field="file", value=str(path), remedy="copy or download the file again"
        ) from None


def _aligned(tensor: Tensor) -> Tensor:
    """A copy where the file put a tensor on an odd address, which not every kernel takes."""
    return tensor.clone() if tensor.data_ptr() % max(1, tensor.element_size()) else tensor


def write_tensors(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> str:
    """Writes `tensors` beside `path`, then renames: the old file or the new one, never half. Returns its SHA-256.

    The bytes depend only on names, values and metadata. Tensors may lie on any device and in any layout of strides;
    floating ones are cast to `dtype` one at a time, so memory stays at one tensor. Raises DachengError when two names
    share one tensor (tied weights: store one, and say so in the config), when a tensor has no storable values, when a
    cast would overflow, or when the disk is too full.
    """
    path = Path(path)
    _refuse_shared(tensors)
    header, order = _layout(tensors, metadata or {}, dtype)
    needed = len(header) + sum(_stored_bytes(tensors[name], dtype) for name in order)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DachengError(
            f"{path} needs {needed} bytes and the disk has {free}",
            field="disk",
            value=str(path.parent),
            remedy="free space, or write to another disk",
        )
    digest = hashlib.sha256(header)
    with replacing_file(path) as file:
        file.write(header)
        for name in order:
            data = _bytes(name, tensors[name], dtype)
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _layout(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None
) -> tuple[bytes, list[str]]:
    """Length and header as bytes, and the order of the data: widest items first, so that each tensor is aligned."""
    order = sorted(tensors, key=lambda name: (-_stored_dtype(name, tensors[name], dtype).itemsize, name))
    items: dict[str, object] = {}
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise DachengError(
                "metadata maps text to text", field=str(key), value=value, remedy="store it as JSON text"
            )
    if metadata:
        items["__metadata__"] = dict(sorted(metadata.items()))
    position = 0
    for name in order:
        if name == "__metadata__":
            raise DachengError("a tensor cannot have this name", field=name, remedy="rename it")
        stored = NAMES[_stored_dtype(name, tensors[name], dtype)]
        shape = list(tensors[name].shape)
        end = position + math.prod(shape) * ITEM_BYTES[stored]
        items[name] = {"dtype": stored, "shape": shape, "data_offsets": [position, end]}
        position = end
    try:
        text = json.dumps(items, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DachengError("names and metadata must be valid text", field="header", value=error.object) from None
    text += b" " * (-(8 + len(text)) % ALIGNMENT)  # the format pads with spaces
    if len(text) > MAX_HEADER_BYTES:
        raise DachengError(
            "too many tensors for one file", field="header", value=len(text), remedy="write several files"
        )
    return len(text).to_bytes(8, "little") + text, order


def _stored_dtype(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    stored = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    if stored not in NAMES:
        raise DachengError(
            "safetensors has no such dtype", field=name, value=str(stored), remedy="cast it, or pack it into integers"
        )
    if tensor.is_meta or tensor.layout is not torch.strided:
        raise DachengError(
            "a tensor without plain values cannot be stored",
            field=name,
            value=f"{tensor.device.type}, {tensor.layout}",
            remedy="store a dense tensor that holds values",
        )
    return stored


def _stored_bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    cast = dtype is not None and tensor.is_floating_point()
    return tensor.numel() * (dtype.itemsize if cast and dtype is not None else tensor.element_size())


def _bytes(name: str, tensor: Tensor, dtype: torch.dtype | None) -> memoryview:
    stored = tensor.detach()
    if dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype:
        refuse_overflow(name, stored, dtype)
        stored = stored.to(dtype)
    return stored.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def refuse_overflow(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """A finite value must not become infinite by being stored."""
    if tensor.numel() == 0:
        return
    low, high = tensor.aminmax()  # NaN when there is one: it stays one
    largest = max(-low.item(), high.item())
    if torch.finfo(dtype).max < largest < math.inf:
        raise DachengError(
            f"the values do not fit {dtype}",
            field=name,
            value=largest,
            remedy="save as bfloat16 or float32, whose range is wider",
        )


def _refuse_shared(tensors: Mapping[str, Tensor]) -> None:
    """Two names for the same memory would come back as two tensors: the tie would be lost without a word."""
    seen: dict[tuple[object, int], str] = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 0 or tensor.is_meta or tensor.layout is not torch.strided:
            continue
        first = seen.setdefault((tensor.device, tensor.data_ptr()), name)
        if first != name and tensors[first].numel() == tensor.numel():
            raise DachengError(
                f"{first} and {name} are one tensor",
                field=name,
                value=list(tensor.shape),
                remedy=f"store only {first} and tie the other when loading, or store a clone",
            )
