"""Attention of one step: requests of different lengths, in one row of tokens, each over its own past."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.engine.cache import KVCache
from dacheng.engine.step_plan import Chunk, StepPlan
from dacheng.engine.storage import Ranges
from dacheng.nn.contexts import AttentionLayer, attention, causal_mask

FEW = 32  # rows of a chunk: drafts to be checked, the end of a prompt behind a cached beginning
# A single token attends together with its neighbours while padding it costs less than a call of its own.
WORTH_PADDING = 128  # tokens; measured on a 256-wide model: at 260 it loses 10%, at 0 it wins 15%
# Measured on 16 requests with 3 heads of 64: one call takes 0.4 of the time at 160 tokens, 0.6 at 300, 1.1 at 640.
WORTH_GATHERING = 512


@dataclass(slots=True)
class Run:
    """Single tokens, in rows `row` and on of the step, that attend in one call: what each looks at is one stretch of
    rows of the cache, `step` rows behind that of the one before. lengths: how many rows of them are its own."""

    row: int
    first: int
    step: int
    lengths: list[int]
    spare: int  # the fewest rows that any of them could be padded to

    def takes(self, first: int, length: int, spare: int) -> bool:
        count = len(self.lengths)
        step = first - self.first if count == 1 else self.step
        longest, shortest = max(*self.lengths, length), min(*self.lengths, length)
        if step <= 0 or first != self.first + count * step or longest - shortest > WORTH_PADDING:
            return False
        return longest <= min(self.spare, length + spare)

    def take(self, first: int, length: int, spare: int) -> None:
        self.step = first - self.first if len(self.lengths) == 1 else self.step
        self.lengths.append(length)
        self.spare = min(self.spare, length + spare)


@dataclass(slots=True)
class Scattered:
    """Single tokens, in rows `row` and on of the step, whose pasts lie in several places each (a beginning that others
    computed, and their own). Short ones are copied together and attend in one call, long ones one by one."""

    row: int
    ranges: list[Ranges]
    lengths: list[int]

    def takes(self, length: int) -> bool:
        longest, shortest = max(*self.lengths, length), min(*self.lengths, length)
        return longest <= WORTH_GATHERING and longest - shortest <= WORTH_PADDING

    def places(self) -> list[int]:
        """Rows of the cache: as many for each, where it is shorter its first one again."""
        longest, found = max(self.lengths), list[int]()
        for ranges, length in zip(self.ranges, self.lengths):
            for first, stop in ranges:
                found.extend(range(first, stop))
            found.extend([ranges[0][0]] * (longest - length))
        return found


@dataclass(frozen=True, slots=True)
class _Single:
    """Single tokens that attend in one call. mask: additive (n, 1, 1, S), None where all are as long. places: of
    scattered ones (n·S,), None where there is one of them."""

    tokens: Run | Scattered
    mask: Tensor | None
    places: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Group:
    """What the layers that store alike share in a step."""

    places: Tensor
    singles: list[_Single]  # in order of their rows
    chunks: list[tuple[int, Chunk, Ranges]]  # first row


class CachedContext:
    """The context of one step (see dacheng.nn.contexts.Context): B = 1, T = all tokens of the plan.

    The step is written first; then each token attends over the cache. Single tokens that lie at equal distances attend
    together, padded to the longest of their run, others one by one, and chunks with a mask. Where everything lies, and
    the masks, are found once for all layers of a group.
    """

    def __init__(self, cache: KVCache, plan: StepPlan) -> None:
        self.cache, self.plan = cache, plan
        self._spans = [(chunk.request.slot, chunk.start, chunk.stop) for chunk in plan.chunks]
        self._groups: dict[Hashable, _Group] = {}
        self._chunk_masks: dict[tuple[int, int | None], Tensor] = {}

    def attend(self, layer: AttentionLayer, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        group = self._group(layer, q_BHTE)
        self.cache.append(layer.index, group.places, k_BKTE, v_BKTE)
        q_TH1E = q_BHTE.permute(2, 1, 0, 3)
        parts = [self._attend_single(layer, single, q_TH1E) for single in group.singles]
        parts += [self._attend_chunk(layer, *chunk, q_BHTE, k_BKTE, v_BKTE) for chunk in group.chunks]
        out_TH1E = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out_TH1E.permute(2, 1, 0, 3)

    def preceding(self, tokens: Tensor, distance: int) -> Tensor:
        """(1, T): of each token of the step, the one `distance` places before it in its request, or -1."""
        before = [
            text[position - distance] if position >= distance else -1
            for chunk, text in ((chunk, chunk.text) for chunk in self.plan.chunks)
            for position in range(chunk.start, chunk.stop)
        ]
        return torch.tensor([before], device=tokens.device)

    def _group(self, layer: AttentionLayer, like: Tensor) -> _Group:
        key = self.cache.group(layer.index)
        if key not in self._groups:
            singles: list[Run | Scattered] = []
            chunks: list[tuple[int, Chunk, Ranges]] = []
            row = 0
            for chunk in self.plan.chunks:
                ranges = self.cache.ranges(
                    layer.index, chunk.request.slot, first_visible(layer, chunk.start), chunk.stop
                )
                if chunk.count > 1:
                    chunks.append((row, chunk, ranges))
                else:
                    self._place(singles, row, ranges, self.cache.spare(layer.index, chunk.request.slot, chunk.stop))
                row += chunk.count
            ready = [self._ready(one, like) for one in singles]
            self._groups[key] = _Group(self.cache.places(layer.index, self._spans), ready, chunks)
        return self._groups[key]

    @staticmethod
    def _ready(tokens: Run | Scattered, like: Tensor) -> _Single:
        mask = _padding_mask(tokens.lengths, like)
        if isinstance(tokens, Run) or len(tokens.lengths) == 1:
            return _Single(tokens, mask)
        return _Single(tokens, mask, torch.tensor(tokens.places(), device=like.device))

    @staticmethod
    def _place(singles: list[Run | Scattered], row: int, ranges: Ranges, spare: int) -> None:
        first = ranges[0][0]
        length = sum(b - a for a, b in ranges)
        last = singles[-1] if singles else None
        if len(ranges) > 1:
            if isinstance(last, Scattered) and last.takes(length):
                last.ranges.append(ranges)
                last.lengths.append(length)
            else:
                singles.append(Scattered(row, [ranges], [length]))
        elif isinstance(last, Run) and last.takes(first, length, spare):
            last.take(first, length, spare)
        else:
            singles.append(Run(row, first, 0, [length], length + spare))

    def _attend_single(self, layer: AttentionLayer, single: _Single, q_TH1E: Tensor) -> Tensor:
        """One token of each request: the requests are the batch -> (n, H, 1, E)."""
        tokens, count = single.tokens, len(single.tokens.lengths)
        if isinstance(tokens, Run):
            k, v = self.cache.read_rows(layer.index, tokens.first, tokens.step, count, max(tokens.lengths))
        elif single.places is None:
            k, v = (x_KSE[None] for x_KSE in self.cache.read(layer.index, tokens.ranges[0]))
        else:
            read = self.cache.read_at(layer.index, single.places)
            k, v = (x_KNE.unflatten(1, (count, -1)).transpose(0, 1) for x_KNE in read)
        return attention(q_TH1E[tokens.row : tokens.row + count], k, v, single.mask, False, layer)

    def _attend_chunk(
        self,
        layer: AttentionLayer,
        row: int,
        chunk: Chunk,
        ranges: Ranges,
        q_BHTE: Tensor,
        k_BKTE: Tensor,
        v_BKTE: Tensor,
    ) -> Tensor:
        """Several tokens of one request -> (T, H, 1, E)."""
        rows = slice(row, row + chunk.count)
        q = q_BHTE[:, :, rows]
        window = None if layer.window is None or layer.window >= chunk.stop else layer.window
        if window is None and chunk.start == 0 and self.cache.keeps_all:
            out = attention(q, k_BKTE[:, :, rows], v_BKTE[:, :, rows], None, True, layer)
        else:
            key = (chunk.request.slot, window)
            if key not in self._chunk_masks:
                queries = torch.arange(chunk.start, chunk.stop, device=q.device)
                keys = torch.arange(first_visible(layer, chunk.start), chunk.stop, device=q.device)
                self._chunk_masks[key] = _additive(causal_mask(queries, keys, window)[None, None], q.dtype)
            k_KSE, v_KSE = self.cache.read(layer.index, ranges)
            out = _attention_of_few(q, k_KSE[None], v_KSE[None], self._chunk_masks[key], layer)
        return out.permute(2, 1, 0, 3)


def first_visible(layer: AttentionLayer, position: int) -> int:
    return 0 if layer.window is None else max(0, position - layer.window + 1)


def _attention_of_few(
    q_1HTE: Tensor, k_1KSE: Tensor, v_1KSE: Tensor, mask_11TS: Tensor, layer: AttentionLayer
) -> Tensor:
    """The heads of a group become rows over the same keys, where there are few rows: that saves repeating the cache."""
    _, H, T, E = q_1HTE.shape
    K = k_1KSE.shape[1]
    if H == K or T > FEW or layer.sinks is not None:
        return attention(q_1HTE, k_1KSE, v_1KSE, mask_11TS, False, layer)
    q = q_1HTE.reshape(1, K, H // K * T, E)
    out = attention(q, k_1KSE, v_1KSE, mask_11TS.repeat(1, 1, H // K, 1), False, layer)
    return out.reshape(1, H, T, out.shape[-1])


def _padding_mask(lengths: list[int], like: Tensor) -> Tensor | None:
    """(n, 1, 1, S), or None where all are as long: a lone decode never pays for a mask."""
    if min(lengths) == max(lengths):
        return None
    own = torch.tensor(lengths, device=like.device)
    allowed = torch.arange(max(lengths), device=like.device) < own.unsqueeze(1)
    return _additive(allowed[:, None, None], like.dtype)


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    # The CPU kernel would convert a boolean mask again in every layer.
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))
