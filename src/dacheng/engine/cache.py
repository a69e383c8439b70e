"""Keys and values of the tokens that were computed, by layer and slot."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dacheng.models.cache import LayerCache

INITIAL_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of a step are written: `rows` of the step (None: all of them) go to `index` of the storage.

    rows (M,) int64; index (K·M,) int64, head by head.
    """

    rows: Tensor | None
    index: Tensor


class KVCache(Protocol):
    """What the scheduler and the attention ask of a cache. A token is addressed by slot and position, never by where
    it lies: contiguous slots today, blocks of pages behind the same questions later."""

    def open(self) -> int:
        """A free slot, for one request."""
        ...

    def close(self, slot: int) -> None:
        """Forgets the slot's tokens and frees it."""
        ...

    def reserve(self, slot: int, tokens: int) -> None:
        """Makes room for positions 0..tokens-1 of a slot."""
        ...

    def group(self, layer: int) -> Hashable:
        """Layers of one group store alike: places and visible counts computed for one serve all."""
        ...

    def visible(self, layer: int, tokens: int) -> int:
        """How many entries a query at position tokens-1 finds, its own included."""
        ...

    def places(self, layer: int, spans: Sequence[tuple[int, int, int]]) -> Places:
        """Where the tokens of `spans` (slot, first position, one past the last) go, in this order."""
        ...

    def append(self, layer: int, places: Places, k_1KTE: Tensor, v_1KTE: Tensor) -> None:
        """Writes the keys and values of a step's T tokens."""
        ...

    def past(self, layer: int, slot: int, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values (K, stop - first, E) of these positions, in order."""
        ...

    def gather(self, layer: int, first_slot: int, slots: int, tokens: int) -> tuple[Tensor, Tensor]:
        """The first `tokens` entries of neighbouring slots: two of (slots, K, tokens, E)."""
        ...

    def bytes(self) -> int:
        """Memory held for keys and values."""
        ...


class _Store:
    """One layer: keys (slots, K, capacity, E) and values, whose width may differ. Position p lies at p modulo capacity,
    so a window layer, whose capacity ends at its window, keeps just the tokens that may still be looked at."""

    def __init__(self, spec: LayerCache, max_context: int, dtype: torch.dtype, device: torch.device) -> None:
        self.heads = spec.kv_heads
        self.limit = min(spec.window or max_context, max_context)
        self.group = (spec.kv_heads, self.limit)
        self.k = torch.zeros(0, self.heads, 0, spec.head_width, dtype=dtype, device=device)
        self.v = torch.zeros(0, self.heads, 0, spec.value_width or spec.head_width, dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        return self.k.shape[2]

    def resize(self, slots: int, tokens: int) -> None:
        """Only ever larger. A window layer grows only before it is full: nothing has wrapped around yet."""
        tokens = min(tokens, self.limit)
        if (slots, tokens) != (self.k.shape[0], self.capacity):
            self.k, self.v = self._copied(self.k, slots, tokens), self._copied(self.v, slots, tokens)

    def _copied(self, old: Tensor, slots: int, tokens: int) -> Tensor:
        # Zeros, not whatever lies there: attention multiplies masked values by 0, and 0 · NaN is NaN.
        new = torch.zeros(slots, self.heads, tokens, old.shape[-1], dtype=old.dtype, device=old.device)
        new[: old.shape[0], :, : old.shape[2]] = old
        return new


class SlotCache:
    """A contiguous row of storage for each request; all rows are as long as the longest needed so far.

    `spec` is the model's cache_spec(). Storage grows by doubling, up to `max_slots` and `max_context`.
    """

    def __init__(
        self,
        spec: Sequence[LayerCache],
        *,
        max_slots: int,
        max_context: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.max_slots, self.max_context = max_slots, max_context
        self._stores = [_Store(layer, max_context, dtype, torch.device(device)) for layer in spec]
        self._free = list(range(max_slots))  # a heap: the lowest slot first keeps the open ones neighbours
        self._used = dict[int, int]()  # slot -> tokens reserved
        self._slots = self._tokens = 0  # what the storage is large enough for

    @property
    def open_slots(self) -> int:
        return len(self._used)

    def open(self) -> int:
        """Raises IndexError when all are taken: the scheduler admits no more than `max_slots`."""
        slot = heapq.heappop(self._free)
        self._used[slot] = 0
        return slot

    def close(self, slot: int) -> None:
        used = self._used.pop(slot)
        for store in self._stores:  # the next one must not even meet a NaN of this one (see _Store)
            store.k[slot : slot + 1, :, :used].zero_()
            store.v[slot : slot + 1, :, :used].zero_()
        heapq.heappush(self._free, slot)

    def reserve(self, slot: int, tokens: int) -> None:
        self._used[slot] = max(tokens, self._used[slot])
        if slot < self._slots and tokens <= self._tokens:
            return
        # Doubling copies a token about once on average.
        if slot >= self._slots:
            self._slots = min(max(slot + 1, 2 * self._slots), self.max_slots)
        if tokens > self._tokens:
            self._tokens = min(max(tokens, 2 * self._tokens, INITIAL_TOKENS), self.max_context)
        for store in self._stores:
            store.resize(self._slots, self._tokens)

    def group(self, layer: int) -> Hashable:
        return self._stores[layer].group

    def visible(self, layer: int, tokens: int) -> int:
        return min(tokens, self._stores[layer].limit)

    def places(self, layer: int, spans: Sequence[tuple[int, int, int]]) -> Places:
        store = self._stores[layer]
        rows: list[int] = []
        entries: list[int] = []  # slot · K · capacity + place, that of head 0
        row = 0
        for slot, first, stop in spans:
            kept = max(first, stop - store.capacity)  # of more tokens than there is room for, the last ones
            base = slot * store.heads * store.capacity
            rows.extend(range(row + kept - first, row + stop - first))
            entries.extend(base + position % store.capacity for position in range(kept, stop))
            row += stop - first
        device = store.k.device
        index = torch.tensor(entries, device=device)
        if store.heads > 1:
            heads = torch.arange(store.heads, device=device).mul_(store.capacity)
            index = (heads.unsqueeze(1) + index).flatten()
        return Places(None if len(rows) == row else torch.tensor(rows, device=device), index)

    def append(self, layer: int, places: Places, k_1KTE: Tensor, v_1KTE: Tensor) -> None:
        store = self._stores[layer]
        if places.rows is not None:
            k_1KTE, v_1KTE = k_1KTE.index_select(2, places.rows), v_1KTE.index_select(2, places.rows)
        for stored, new in ((store.k, k_1KTE), (store.v, v_1KTE)):
            stored.view(-1, stored.shape[-1]).index_copy_(0, places.index, new.reshape(-1, stored.shape[-1]))

    def past(self, layer: int, slot: int, first: int, stop: int) -> tuple[Tensor, Tensor]:
        store = self._stores[layer]
        a = first % store.capacity
        b = a + stop - first
        if b <= store.capacity:
            return store.k[slot, :, a:b], store.v[slot, :, a:b]
        k, v, wrapped = store.k[slot], store.v[slot], b - store.capacity
        return torch.cat((k[:, a:], k[:, :wrapped]), 1), torch.cat((v[:, a:], v[:, :wrapped]), 1)

    def gather(self, layer: int, first_slot: int, slots: int, tokens: int) -> tuple[Tensor, Tensor]:
        store = self._stores[layer]
        rows = slice(first_slot, first_slot + slots)
        return store.k[rows, :, :tokens], store.v[rows, :, :tokens]

    def bytes(self) -> int:
        """All that is allocated, whether open slots use it or not."""
        return sum(store.k.nbytes + store.v.nbytes for store in self._stores)
