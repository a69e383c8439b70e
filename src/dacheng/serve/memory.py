"""Memory that serving takes: checked before the weights are loaded, and again before the cache is made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from dacheng.errors import DachengError

if TYPE_CHECKING:
    from collections.abc import Sequence

PROCESS = 400 << 20  # the interpreter with torch and the server imported, thread pools, activations of a step
CACHE_SHARE = 0.8  # of what is left then
SHORTEST = 64  # a context worth serving


def weight_bytes(path: Path, packed: bool, *, weights_memory: str = "small", widened: bool = False) -> int:
    """Of the weights as they will be in memory: those of a .gguf file that are not left packed become float32, and
    those of a directory where `widened`. weights_memory "fast": packed ones are there a second time, in the order that
    the kernels read."""
    if path.suffix == ".gguf":
        if packed:
            return path.stat().st_size * (2 if weights_memory == "fast" else 1)
        from dacheng.formats.gguf.file import GGUFFile

        return sum(4 * math.prod(tensor.shape) for tensor in GGUFFile(path).tensors.values())
    from dacheng.formats.safetensors_header import ITEM_BYTES, read_header
    from dacheng.formats.shards import weight_files

    entries = [entry for file in weight_files(path) for entry in read_header(path / file).tensors.values()]
    floats = ("BF16", "F16", "F64")
    total = sum(
        math.prod(entry.shape) * (4 if widened and entry.dtype in floats else ITEM_BYTES[entry.dtype])
        for entry in entries
    )
    return total * 2 if packed and weights_memory == "fast" else total


def check_weights(weights: int, available: int) -> None:
    """Raises DachengError when the weights alone do not fit in `available` bytes."""
    if weights + PROCESS > available:
        largest = max(0, available - PROCESS)
        raise DachengError(
            f"the weights take {show(weights)} and the process about {show(PROCESS)} (estimated);"
            f" {show(available)} are available",
            field="model", value=show(weights),
            remedy=f"use a model whose weights take at most {show(largest)}, or free memory",
        )  # fmt: skip


def request_bytes(per_token: int, max_context: int) -> int:
    """Of the keys and values of one request, in whole blocks."""
    return per_token * (max_context + 32)


def cache_room(per_token: int, available: int, *, max_batch: int, max_context: int) -> int:
    """Bytes for keys and values, the weights being loaded: those of a full batch, or as many as there is room for.
    per_token: bytes of one in all layers.

    Raises DachengError, naming the longest context that fits, when there is no room for one request of `max_context`.
    """
    room = room_left(available)
    one = request_bytes(per_token, max_context)
    if one > room:
        fits = room // per_token // 32 * 32 - 32
        raise DachengError(
            f"keys and values of one request of {max_context} tokens take {show(one)}, and {show(room)} are left for"
            " them (estimated)",
            field="max_context", value=max_context,
            remedy=f"--max-context {fits} fits" if fits >= SHORTEST else "use a smaller model, or free memory",
        )  # fmt: skip
    return min(room, max_batch * one)


def room_left(available: int) -> int:
    """Of what is available once the weights are there, the bytes for keys and values."""
    return int(max(0, available - PROCESS // 2) * CACHE_SHARE)


def divide(room: int, ones: Sequence[int], max_batch: int) -> list[int]:
    """What each of several engines gets of `room`: a full batch where that fits all, else one request of each, and of
    the rest as much as it wants more, in proportion. ones: bytes of one request of each.

    Raises DachengError when there is no room for one request of each.
    """
    least, most = sum(ones), max_batch * sum(ones)
    if least > room:
        raise DachengError(
            f"keys and values of one request of each of {len(ones)} models take {show(least)}, and {show(room)} are"
            " left for them (estimated)",
            field="max_context", remedy="fewer models, or a shorter --max-context",
        )  # fmt: skip
    share = 1.0 if most <= room or most == least else (room - least) / (most - least)
    return [one + int(share * (max_batch - 1) * one) for one in ones]


def show(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 1 << 29 else f"{n_bytes / 2**20:.0f} MiB"
