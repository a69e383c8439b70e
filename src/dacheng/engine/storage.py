"""Where one layer's keys and values lie."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.engine.blocks import BLOCK
from dacheng.errors import DachengError, UsageError
from dacheng.models.cache import LayerCache

Ranges = list[tuple[int, int]]  # of rows of the storage, [first, stop), in the order of the text
KV_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
SCALE = torch.float32


@dataclass(frozen=True, slots=True)
class KVFormat:
    """How a key or a value is kept: as floats, or as int8 with one float32 scale for each token and head: absmax / 127,
    so an error of half of that at most (as in KIVI's per-token values, Liu et al. 2024, section 3.1, with all of a head
    as the group)."""

    dtype: torch.dtype

    @property
    def scaled(self) -> bool:
        return self.dtype == torch.int8

    def bytes_per_token(self, layer: LayerCache) -> int:
        scales = 2 * layer.kv_heads * SCALE.itemsize if self.scaled else 0
        return layer.bytes_per_token(self.dtype.itemsize) + scales


def kv_format(kv_dtype: torch.dtype | str | None, weights: torch.dtype) -> KVFormat:
    """kv_dtype: a name of KV_DTYPES or such a dtype; None: that of the weights. Raises UsageError for any other."""
    if kv_dtype is None:
        return KVFormat(weights)
    found = KV_DTYPES.get(kv_dtype) if isinstance(kv_dtype, str) else kv_dtype
    if found is None or found not in KV_DTYPES.values():
        raise UsageError(
            "keys and values are not kept like that", field="kv_dtype", value=str(kv_dtype),
            remedy="one of " + ", ".join(KV_DTYPES),
        )  # fmt: skip
    return KVFormat(found)


class _Rows:
    """values (K, rows, E) of one kind, and scales (K, rows, 1) where they are int8. Read in `dtype`."""

    def __init__(
        self, shape: tuple[int, int, int], format_: KVFormat, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.dtype = dtype
        self.values = _zeros(shape, format_.dtype, device)
        self.scales = _zeros((*shape[:2], 1), SCALE, device) if format_.scaled else None

    @property
    def parts(self) -> list[Tensor]:
        return [self.values] if self.scales is None else [self.values, self.scales]

    def write(self, index: Tensor, new_1KTE: Tensor) -> None:
        new_NE = new_1KTE.reshape(-1, self.values.shape[-1])
        if self.scales is not None:
            new_NE = new_NE.to(SCALE)
            scale_N1 = new_NE.abs().amax(-1, keepdim=True) / 127.0
            self.scales.view(-1, 1).index_copy_(0, index, scale_N1)
            # A NaN or an infinity is in the scale, so it comes out again.
            new_NE = (new_NE / scale_N1).nan_to_num_(0.0).round_()
        self.values.view(-1, self.values.shape[-1]).index_copy_(0, index, new_NE.to(self.values.dtype))

    def read(self, ranges: Ranges) -> Tensor:
        found = []
        for stored in self.parts:
            pieces = [stored[:, first:stop] for first, stop in ranges]
            found.append(pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1))
        return self._floats(*found)

    def at(self, index: Tensor) -> Tensor:
        return self._floats(*(stored.index_select(1, index) for stored in self.parts))

    def stretches(self, first: int, step: int, count: int, rows: int) -> Tensor:
        """(count, K, rows, E)."""
        found = []
        for stored in self.parts:
            K, width = len(stored), stored.shape[-1]
            strides = (step * width, stored.stride(0), width, 1)
            found.append(stored.as_strided((count, K, rows, width), strides, first * width))
        return self._floats(*found)

    def _floats(self, values: Tensor, scales: Tensor | None = None) -> Tensor:
        if scales is None:
            return values.to(self.dtype)  # itself, where it is that
        return (values.to(SCALE) * scales).to(self.dtype)

    def wipe(self, index: Tensor) -> None:
        for stored in self.parts:
            stored.view(len(stored), -1, BLOCK, stored.shape[-1]).index_fill_(1, index, 0)


class LayerStorage:
    """Keys (K, rows, E) and values (K, rows, width of a value) of all blocks of one layer; block b is rows 32·b and on.

    Heads come first, so that adjacent blocks are one stretch of rows and are read without a copy (where they are kept
    in the dtype `dtype` that they are read in). Memory that was never written costs nothing on a CPU: it is mapped,
    zero, and has no pages behind it yet.
    """

    def __init__(
        self, spec: LayerCache, blocks: int, format_: KVFormat, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.heads, self.rows = spec.kv_heads, blocks * BLOCK
        self.bytes_per_block = format_.bytes_per_token(spec) * BLOCK
        self._k = _Rows((self.heads, self.rows, spec.head_width), format_, dtype, device)
        self._v = _Rows((self.heads, self.rows, spec.value_width or spec.head_width), format_, dtype, device)

    @property
    def k(self) -> Tensor:
        """As it is kept, for kernels that follow a table."""
        return self._k.values

    @property
    def v(self) -> Tensor:
        return self._v.values

    def write(self, index: Tensor, k_1KTE: Tensor, v_1KTE: Tensor) -> None:
        """index (K·T,): rows of the storage with its heads one behind the other."""
        self._k.write(index, k_1KTE)
        self._v.write(index, v_1KTE)

    def read(self, ranges: Ranges) -> tuple[Tensor, Tensor]:
        """(K, T, E) each: a view of a single range, a copy of several."""
        return self._k.read(ranges), self._v.read(ranges)

    def read_at(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """index (N,): rows of the storage -> (K, N, E) each, a copy."""
        return self._k.at(index), self._v.at(index)

    def read_rows(self, first: int, step: int, count: int, rows: int) -> tuple[Tensor, Tensor]:
        """`count` stretches of `rows` rows, the first at `first`, each `step` rows behind the one before:
        (count, K, rows, E) each, views where nothing is converted."""
        return self._k.stretches(first, step, count, rows), self._v.stretches(first, step, count, rows)

    def wipe(self, blocks: Sequence[int]) -> None:
        index = torch.tensor(blocks, device=self.k.device)
        self._k.wipe(index)
        self._v.wipe(index)


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
