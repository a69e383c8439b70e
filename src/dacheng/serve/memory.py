"""Memory that serving takes: checked before the weights are loaded, and again before the cache is made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from dacheng.errors import DachengError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dacheng.models.cache import LayerCache

PROCESS = 400 << 20  # the interpreter with torch and the server imported, thread pools, activations of a step
CACHE_SHARE = 0.8  # of what is left then
SHORTEST = 64  # a context worth serving


def weight_bytes(path: Path, packed: bool) -> int:
    """Of the weights as they will be in memory: those of a .gguf file that are not left packed become float32."""
    if path.suffix != ".gguf":
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    if packed:
        return path.stat().st_size
    from dacheng.formats.gguf.file import GGUFFile

    return sum(4 * math.prod(tensor.shape) for tensor in GGUFFile(path).tensors.values())


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


def cache_room(spec: Sequence[LayerCache], available: int, *, max_batch: int, max_context: int, itemsize: int) -> int:
    """Bytes for keys and values, the weights being loaded: those of a full batch, or as many as there is room for.

    Raises DachengError, naming the longest context that fits, when there is no room for one request of `max_context`.
    """
    per_token = sum(layer.bytes_per_token(itemsize) for layer in spec)
    room = int(max(0, available - PROCESS // 2) * CACHE_SHARE)
    one = per_token * (max_context + 32)  # whole blocks
    if one > room:
        fits = room // per_token // 32 * 32 - 32
        raise DachengError(
            f"keys and values of one request of {max_context} tokens take {show(one)}, and {show(room)} are left for"
            " them (estimated)",
            field="max_context", value=max_context,
            remedy=f"--max-context {fits} fits" if fits >= SHORTEST else "use a smaller model, or free memory",
        )  # fmt: skip
    return min(room, max_batch * one)


def show(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 1 << 29 else f"{n_bytes / 2**20:.0f} MiB"
