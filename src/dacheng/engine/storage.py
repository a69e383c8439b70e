"""Where one layer's keys and values lie."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from dacheng.engine.blocks import BLOCK
from dacheng.errors import DachengError
from dacheng.models.cache import LayerCache

Ranges = list[tuple[int, int]]  # of rows of the storage, [first, stop), in the order of the text


class LayerStorage:
    """k (K, rows, E) and v (K, rows, width of a value) of all blocks of one layer; block b is rows 32·b and on.

    Heads come first, so that adjacent blocks are one stretch of rows and are read without a copy. Memory that was
    never written costs nothing on a CPU: it is mapped, zero, and has no pages behind it yet.
    """

    def __init__(self, spec: LayerCache, blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        self.heads, self.rows = spec.kv_heads, blocks * BLOCK
        self.k = _zeros((self.heads, self.rows, spec.head_width), dtype, device)
        self.v = _zeros((self.heads, self.rows, spec.value_width or spec.head_width), dtype, device)

    @property
    def bytes_per_block(self) -> int:
        return (self.k[:, :BLOCK].numel() + self.v[:, :BLOCK].numel()) * self.k.element_size()

    def write(self, index: Tensor, k_1KTE: Tensor, v_1KTE: Tensor) -> None:
        """index (K·T,): rows of the storage with its heads one behind the other."""
        for stored, new in ((self.k, k_1KTE), (self.v, v_1KTE)):
            stored.view(-1, stored.shape[-1]).index_copy_(0, index, new.reshape(-1, stored.shape[-1]))

    def read(self, ranges: Ranges) -> tuple[Tensor, Tensor]:
        """(K, T, E) each: a view of a single range, a copy of several."""
        if len(ranges) == 1:
            first, stop = ranges[0]
            return self.k[:, first:stop], self.v[:, first:stop]
        k, v = ([stored[:, first:stop] for first, stop in ranges] for stored in (self.k, self.v))
        return torch.cat(k, 1), torch.cat(v, 1)

    def read_rows(self, first: int, step: int, count: int, rows: int) -> tuple[Tensor, Tensor]:
        """`count` stretches of `rows` rows, the first at `first`, each `step` rows behind the one before:
        (count, K, rows, E) each, views."""
        return tuple(
            stored.as_strided(
                (count, self.heads, rows, stored.shape[-1]),
                (step * stored.shape[-1], stored.stride(0), stored.shape[-1], 1),
                first * stored.shape[-1],
            )
            for stored in (self.k, self.v)
        )  # type: ignore[return-value]

    def wipe(self, blocks: Sequence[int]) -> None:
        index = torch.tensor(blocks, device=self.k.device)
        for stored in (self.k, self.v):
            stored.view(self.heads, -1, BLOCK, stored.shape[-1]).index_fill_(1, index, 0.0)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu" or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.zeros(shape, dtype=dtype, device=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except (OSError, OverflowError) as error:
        raise DachengError(
            f"the cache cannot be mapped: {error}",
            field="cache_tokens",
            value=shape[1],
            remedy="give a smaller cache_tokens or cache_bytes",
        ) from None
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # 2 MB behind the first token of every head would not be nothing
    return torch.frombuffer(memory, dtype=dtype).view(shape)
