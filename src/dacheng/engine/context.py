"""Attention of one step: requests of different lengths, in one row of tokens, each over its own past."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.engine.cache import KVCache, Places
from dacheng.engine.step_plan import Chunk, StepPlan
from dacheng.nn.contexts import AttentionLayer, attention, causal_mask

# A single token attends together with its neighbours while padding it costs less than a call of its own.
WORTH_PADDING = 128  # tokens; measured on a 256-wide model: at 260 it loses 10%, at 0 it wins 15%


@dataclass(slots=True)
class _Run:
    """Single tokens of neighbouring slots, in rows `row` and on of the step; `tokens`: the length of each request."""

    row: int
    slot: int
    tokens: list[int]

    def takes(self, slot: int, tokens: int) -> bool:
        return (
            slot == self.slot + len(self.tokens)
            and abs(tokens - min(self.tokens)) <= WORTH_PADDING
            and abs(tokens - max(self.tokens)) <= WORTH_PADDING
        )


@dataclass(frozen=True, slots=True)
class _Padded:
    """What a run looks at in one group of layers: `entries` of each slot, and which of them are there."""

    run: _Run
    entries: int
    mask: Tensor | None  # additive (n, 1, 1, entries)


@dataclass(frozen=True, slots=True)
class _Group:
    """What the layers that store alike share in a step."""

    places: Places
    runs: list[_Padded]


class CachedContext:
    """The context of one step (see dacheng.nn.contexts.Context): B = 1, T = all tokens of the plan.

    Single tokens are written first and then attend together over the cache, padded to the longest of their run. A chunk
    attends over its past, taken from the cache, and itself. Masks and places are made once for all layers of a group.
    """

    def __init__(self, cache: KVCache, plan: StepPlan) -> None:
        self.cache, self.plan = cache, plan
        self._spans = [(chunk.request.slot, chunk.start, chunk.stop) for chunk in plan.chunks]
        self._runs: list[_Run] = []
        self._chunks: list[tuple[int, Chunk]] = []  # first row, chunk
        self._groups: dict[Hashable, _Group] = {}
        self._chunk_masks: dict[tuple[int, int | None], Tensor] = {}
        row = 0
        for chunk in plan.chunks:
            if chunk.count > 1:
                self._chunks.append((row, chunk))
            elif self._runs and self._runs[-1].takes(chunk.request.slot, chunk.stop):
                self._runs[-1].tokens.append(chunk.stop)
            else:
                self._runs.append(_Run(row, chunk.request.slot, [chunk.stop]))
            row += chunk.count

    def attend(self, layer: AttentionLayer, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        # A chunk takes its past before the step is written: in a window layer its last tokens overwrite the first ones
        # that its own first tokens still look at.
        keys = [self._chunk_keys(layer, row, chunk, k_BKTE, v_BKTE) for row, chunk in self._chunks]
        group = self._group(layer, q_BHTE)
        self.cache.append(layer.index, group.places, k_BKTE, v_BKTE)
        q_TH1E = q_BHTE.permute(2, 1, 0, 3)
        parts = [self._attend_run(layer, padded, q_TH1E) for padded in group.runs]
        parts += [
            self._attend_chunk(layer, row, chunk, q_BHTE, k, v) for (row, chunk), (k, v) in zip(self._chunks, keys)
        ]
        out_TH1E = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out_TH1E.permute(2, 1, 0, 3)

    def preceding(self, tokens: Tensor, distance: int) -> Tensor:
        """(1, T): of each token of the step, the one `distance` places before it in its request, or -1."""
        before = [
            chunk.request.known[position - distance] if position >= distance else -1
            for chunk in self.plan.chunks
            for position in range(chunk.start, chunk.stop)
        ]
        return torch.tensor([before], device=tokens.device)

    def _group(self, layer: AttentionLayer, like: Tensor) -> _Group:
        key = self.cache.group(layer.index)
        group = self._groups.get(key)
        if group is None:
            runs = []
            for run in self._runs:
                visible = [self.cache.visible(layer.index, tokens) for tokens in run.tokens]
                runs.append(_Padded(run, max(visible), _padding_mask(visible, like)))
            group = self._groups[key] = _Group(self.cache.places(layer.index, self._spans), runs)
        return group

    def _attend_run(self, layer: AttentionLayer, padded: _Padded, q_TH1E: Tensor) -> Tensor:
        """One token of each slot: the slots are the batch -> (n, H, 1, E)."""
        run = padded.run
        count = len(run.tokens)
        k, v = self.cache.gather(layer.index, run.slot, count, padded.entries)
        return attention(q_TH1E[run.row : run.row + count], k, v, padded.mask, False, layer)

    def _chunk_keys(
        self, layer: AttentionLayer, row: int, chunk: Chunk, k_BKTE: Tensor, v_BKTE: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Everything that the tokens of a chunk may look at: the past that is visible to its first one, and itself."""
        rows = slice(row, row + chunk.count)
        k, v = k_BKTE[:, :, rows], v_BKTE[:, :, rows]
        first = self._first_visible(layer, chunk)
        if first == chunk.start:
            return k, v
        past_k, past_v = self.cache.past(layer.index, chunk.request.slot, first, chunk.start)
        return torch.cat((past_k.unsqueeze(0), k), 2), torch.cat((past_v.unsqueeze(0), v), 2)

    def _attend_chunk(
        self, layer: AttentionLayer, row: int, chunk: Chunk, q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor
    ) -> Tensor:
        """Several tokens of one request -> (T, H, 1, E)."""
        q = q_BHTE[:, :, row : row + chunk.count]
        window = None if layer.window is None or layer.window >= chunk.stop else layer.window
        first = self._first_visible(layer, chunk)
        if window is None and first == chunk.start:
            out = attention(q, k_BKSE, v_BKSE, None, True, layer)
        else:
            key = (chunk.request.slot, window)
            if key not in self._chunk_masks:
                queries = torch.arange(chunk.start, chunk.stop, device=q.device)
                keys = torch.arange(first, chunk.stop, device=q.device)
                self._chunk_masks[key] = _additive(causal_mask(queries, keys, window)[None, None], q.dtype)
            out = attention(q, k_BKSE, v_BKSE, self._chunk_masks[key], False, layer)
        return out.permute(2, 1, 0, 3)

    @staticmethod
    def _first_visible(layer: AttentionLayer, chunk: Chunk) -> int:
        return 0 if layer.window is None else max(0, chunk.start - layer.window + 1)


def _padding_mask(visible: list[int], like: Tensor) -> Tensor | None:
    """(n, 1, 1, S), or None where all are as long: a lone decode never pays for a mask."""
    if min(visible) == max(visible):
        return None
    lengths = torch.tensor(visible, device=like.device)
    allowed = torch.arange(max(visible), device=like.device) < lengths.unsqueeze(1)
    return _additive(allowed[:, None, None], like.dtype)


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    # The CPU kernel would convert a boolean mask again in every layer.
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))
