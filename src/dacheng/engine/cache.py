"""Keys and values of the tokens that were computed, by layer, slot and position."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dacheng.engine.blocks import BLOCK, BlockPool, blocks_for
from dacheng.engine.storage import LayerStorage, Ranges, kv_format
from dacheng.models.cache import LayerCache

PADDED_BLOCKS = 4  # how far behind a text's end a padded read may go (see context.WORTH_PADDING)


class KVCache(Protocol):
    """What the scheduler and the attention ask of a cache. A token is addressed by slot and position, never by where
    it lies. keeps_all: what is read is what was written, to the bit."""

    keeps_all: bool

    def open(self) -> int:
        """A free slot, for one request."""
        ...

    def close(self, slot: int, *, sound: bool = True) -> None:
        """Forgets the slot's tokens and frees it. Not `sound`: they may hold a NaN, and nobody may find them."""
        ...

    def adopt(self, slot: int, keys: Sequence[bytes], limit: int) -> int:
        """Shares the longest known beginning with a fresh slot, `limit` tokens at most; returns how many."""
        ...

    def fits(self, slot: int, tokens: int) -> bool:
        """Whether there are blocks for positions 0..tokens-1 of a slot."""
        ...

    def reserve(self, slot: int, tokens: int) -> bool:
        """Makes room for positions 0..tokens-1 of a slot. False, and nothing has changed, when there are no blocks."""
        ...

    def commit(self, slot: int, tokens: int, keys: Sequence[bytes]) -> None:
        """Positions 0..tokens-1 are written; whole blocks among them can be found by their keys from now on."""
        ...

    def group(self, layer: int) -> Hashable:
        """Layers of one group store alike: places and ranges computed for one serve all."""
        ...

    def places(self, layer: int, spans: Sequence[tuple[int, int, int]]) -> Tensor:
        """Where the tokens of `spans` (slot, first position, one past the last) are written, for `append`."""
        ...

    def append(self, layer: int, places: Tensor, k_1KTE: Tensor, v_1KTE: Tensor) -> None:
        """Writes the keys and values of a step's T tokens."""
        ...

    def ranges(self, layer: int, slot: int, first: int, stop: int) -> Ranges:
        """Where positions first..stop-1 lie."""
        ...

    def spare(self, layer: int, slot: int, tokens: int) -> int:
        """How many rows behind that of position tokens-1 hold finite numbers that are nobody's: a padded read may
        pass over them."""
        ...

    def read(self, layer: int, ranges: Ranges) -> tuple[Tensor, Tensor]:
        """Keys and values there: (K, T, E) each."""
        ...

    def read_at(self, layer: int, places: Tensor) -> tuple[Tensor, Tensor]:
        """Those of N rows: (K, N, E) each."""
        ...

    def read_rows(self, layer: int, first: int, step: int, count: int, rows: int) -> tuple[Tensor, Tensor]:
        """`count` stretches of `rows` rows, `step` rows apart: (count, K, rows, E) each."""
        ...

    def bytes(self) -> int:
        """Memory held for keys and values."""
        ...


@dataclass(slots=True)
class _Table:
    """One slot's blocks in one group: that of positions 32·i and on at i, or -1 where a window has slid past it."""

    blocks: list[int] = field(default_factory=list)
    slid: int = 0  # leading entries that are -1
    adopted: int = 0  # leading entries that others computed
    published: int = 0  # leading entries that have their key


class _Group:
    """The layers with one window (None: all that see everything): they hold the same positions, so one pool and one
    table per slot serve them all."""

    def __init__(self, window: int | None, size: int, lanes: int) -> None:
        self.window = window
        self.pool = BlockPool(size, lanes)
        self.tables: dict[int, _Table] = {}
        self.layers: list[LayerStorage] = []

    def first_needed(self, tokens: int) -> int:
        """The first block that the token at position `tokens` looks at."""
        return 0 if self.window is None else max(0, tokens - self.window + 1) // BLOCK

    def missing(self, slot: int, tokens: int) -> int:
        return blocks_for(tokens) - len(self.tables[slot].blocks)

    def grow(self, slot: int, tokens: int) -> None:
        blocks = self.tables[slot].blocks
        for _ in range(self.missing(slot, tokens)):
            blocks.append(self.pool.take(prefer=blocks[-1] + 1 if blocks else -1))

    def holds(self, keys: Sequence[bytes], count: int) -> bool:
        """Whether a text could go on behind its first `count` blocks."""
        return all(self.pool.has(keys[i]) for i in range(self.first_needed(count * BLOCK), count))

    def adopt(self, slot: int, keys: Sequence[bytes], count: int) -> None:
        first = self.first_needed(count * BLOCK)
        blocks = [-1] * first + [self.pool.share(key) for key in keys[first:count]]
        self.tables[slot] = _Table(blocks, first, count, count)

    def commit(self, slot: int, tokens: int, keys: Sequence[bytes]) -> None:
        table = self.tables[slot]
        for i in range(table.published, min(tokens // BLOCK, len(keys))):
            self.pool.publish(table.blocks[i], keys[i])
            table.published = i + 1
        while table.slid < self.first_needed(tokens):
            self.pool.release(table.blocks[table.slid])
            table.blocks[table.slid] = -1
            table.slid += 1

    def close(self, slot: int, sound: bool) -> None:
        table = self.tables.pop(slot)
        wiped = []
        # In this order the next text finds them one behind the other: published ones at the end of the queue, the
        # others in front of it.
        known = max(table.slid, table.published)
        for i in (*range(table.slid, known), *reversed(range(known, len(table.blocks)))):
            if self.pool.release(table.blocks[i], sound=sound or i < table.adopted):
                wiped.append(table.blocks[i])
        if wiped:
            for layer in self.layers:
                layer.wipe(wiped)


class PagedCache:
    """Blocks of 32 tokens, shared by texts that begin alike (Kwon et al. 2023, PagedAttention).

    spec: the model's cache_spec(). max_tokens: what layers that see everything hold, of all slots together. A window
    layer holds what its window needs for `max_slots` texts, of which one step computes `max_step` tokens. dtype: what
    is read; kv_dtype: what is kept (see storage.kv_format).
    """

    def __init__(
        self,
        spec: Sequence[LayerCache],
        *,
        max_slots: int,
        max_tokens: int,
        max_step: int = 512,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype | str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises UsageError for a kv_dtype that there is not."""
        self.max_slots, self.format = max_slots, kv_format(kv_dtype, dtype)
        self.keeps_all = self.format.dtype == dtype  # what is read is what was written
        self._free_slots = list(range(max_slots))  # a heap: the lowest first
        self._groups: dict[int | None, _Group] = {}
        self._group_of: list[_Group] = []
        self._layers: list[LayerStorage] = []
        self.max_tokens = blocks_for(max_tokens) * BLOCK  # of one text that has the cache for itself
        for layer in spec:
            window = layer.window
            if window not in self._groups:
                self._groups[window] = _Group(window, self._size(window, max_tokens, max_step), max_slots)
            group = self._groups[window]
            self._layers.append(LayerStorage(layer, group.pool.size, self.format, dtype, torch.device(device)))
            group.layers.append(self._layers[-1])
            self._group_of.append(group)

    def _size(self, window: int | None, max_tokens: int, max_step: int) -> int:
        """Blocks of a group. A window of w tokens touches w/32 + 1 blocks, and one more while it moves on."""
        everything = blocks_for(max_tokens)
        if window is None:
            return everything
        return min(everything, self.max_slots * (blocks_for(window) + 2) + blocks_for(max_step))

    @property
    def open_slots(self) -> int:
        return self.max_slots - len(self._free_slots)

    @property
    def pools(self) -> list[BlockPool]:
        return [group.pool for group in self._groups.values()]

    @property
    def usage(self) -> float:
        """Share of the blocks that requests hold, 0 to 1, where it is largest."""
        return max((pool.used / pool.size for pool in self.pools), default=0.0)

    def table(self, layer: int, slot: int) -> list[int]:
        """The slot's blocks in this layer, for kernels that follow a table; -1 where a window has slid past."""
        return self._group_of[layer].tables[slot].blocks

    @property
    def storages(self) -> list[LayerStorage]:
        return self._layers

    def storage(self, layer: int) -> LayerStorage:
        return self._layers[layer]

    def open(self) -> int:
        """Raises IndexError when all are taken: the scheduler admits no more than `max_slots`."""
        slot = heapq.heappop(self._free_slots)
        for group in self._groups.values():
            group.tables[slot] = _Table()
        return slot

    def close(self, slot: int, *, sound: bool = True) -> None:
        for group in self._groups.values():
            group.close(slot, sound)
        heapq.heappush(self._free_slots, slot)

    def adopt(self, slot: int, keys: Sequence[bytes], limit: int) -> int:
        count = min(len(keys), limit // BLOCK)
        full = self._groups.get(None)
        if full is not None:
            count = next((i for i in range(count) if not full.pool.has(keys[i])), count)
        while count and not all(group.holds(keys, count) for group in self._groups.values() if group is not full):
            count -= 1
        for group in self._groups.values():
            group.adopt(slot, keys, count)
        return count * BLOCK

    def fits(self, slot: int, tokens: int) -> bool:
        return all(
            group.missing(slot, tokens) <= group.pool.free for group in self._groups.values() if group.window is None
        )

    def reserve(self, slot: int, tokens: int) -> bool:
        groups = self._groups.values()
        if any(group.missing(slot, tokens) > group.pool.free for group in groups):
            return False
        for group in groups:
            group.grow(slot, tokens)
        return True

    def commit(self, slot: int, tokens: int, keys: Sequence[bytes]) -> None:
        for group in self._groups.values():
            group.commit(slot, tokens, keys)

    def forget_prefixes(self) -> None:
        """No text is found any more; running ones are not touched."""
        for pool in self.pools:
            pool.forget_all()

    def group(self, layer: int) -> Hashable:
        return (self._group_of[layer].window, self._layers[layer].heads)

    def places(self, layer: int, spans: Sequence[tuple[int, int, int]]) -> Tensor:
        storage, tables = self._layers[layer], self._group_of[layer].tables
        rows: list[int] = []
        for slot, first, stop in spans:
            blocks = tables[slot].blocks
            rows.extend(blocks[position // BLOCK] * BLOCK + position % BLOCK for position in range(first, stop))
        index = torch.tensor(rows, device=storage.k.device)
        if storage.heads > 1:
            heads = torch.arange(storage.heads, device=index.device).mul_(storage.rows)
            index = (heads.unsqueeze(1) + index).flatten()
        return index

    def append(self, layer: int, places: Tensor, k_1KTE: Tensor, v_1KTE: Tensor) -> None:
        self._layers[layer].write(places, k_1KTE, v_1KTE)

    def ranges(self, layer: int, slot: int, first: int, stop: int) -> Ranges:
        blocks = self._group_of[layer].tables[slot].blocks
        found: Ranges = []
        for i in range(first // BLOCK, blocks_for(stop)):
            a = blocks[i] * BLOCK + max(0, first - i * BLOCK)
            b = blocks[i] * BLOCK + min(BLOCK, stop - i * BLOCK)
            if found and found[-1][1] == a:
                found[-1] = (found[-1][0], b)
            else:
                found.append((a, b))
        return found

    def spare(self, layer: int, slot: int, tokens: int) -> int:
        group = self._group_of[layer]
        if group.window is not None:
            return 0  # a block that the window slid past is not wiped
        blocks, refs = group.tables[slot].blocks, group.pool.refs
        behind = blocks[-1] + 1
        while behind < len(refs) and behind - blocks[-1] <= PADDED_BLOCKS and not refs[behind]:
            behind += 1
        return len(blocks) * BLOCK - tokens + (behind - blocks[-1] - 1) * BLOCK

    def read(self, layer: int, ranges: Ranges) -> tuple[Tensor, Tensor]:
        return self._layers[layer].read(ranges)

    def read_at(self, layer: int, places: Tensor) -> tuple[Tensor, Tensor]:
        return self._layers[layer].read_at(places)

    def read_rows(self, layer: int, first: int, step: int, count: int, rows: int) -> tuple[Tensor, Tensor]:
        return self._layers[layer].read_rows(first, step, count, rows)

    def bytes(self) -> int:
        """Of the blocks that were ever used: the others have no memory behind them yet (on a CPU)."""
        return sum(
            group.pool.touched * sum(layer.bytes_per_block for layer in group.layers) for group in self._groups.values()
        )
