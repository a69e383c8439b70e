"""Attention in rows that hold beginnings which several continuations share."""

from __future__ import annotations

import torch
from torch import Tensor

from dacheng.nn.contexts import AttentionLayer, attention


class SharedBeginnings:
    """A row of trees: a beginning, then its continuations one after the other. A token sees the earlier tokens of its
    own tree that belong to the beginning or to its own continuation: what it would see if the beginning stood before
    each continuation anew, which is computed only once.

    document_ids (1, T): the tree, padding -1. branch_ids (1, T): 0 in a beginning, then 1, 2, … positions (1, T): as if
    each continuation stood alone behind the beginning. One row: every tree is a call of its own, over no other's keys.
    """

    def __init__(self, document_ids: Tensor, branch_ids: Tensor, positions: Tensor) -> None:
        self.document_ids, self.branch_ids, self.positions = document_ids, branch_ids, positions
        self.spans = _runs(document_ids[0].tolist())
        self._masks: dict[tuple[int, int | None, torch.dtype], Tensor | None] = {}

    def attend(self, layer: AttentionLayer, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
        parts = []
        for start, stop in self.spans:
            q, k, v = q_BHTE[:, :, start:stop], k_BKTE[:, :, start:stop], v_BKTE[:, :, start:stop]
            mask = self._mask(start, stop, layer.window, q.dtype)
            parts.append(attention(q, k, v, mask, mask is None, layer))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def preceding(self, tokens: Tensor, distance: int) -> Tensor:
        raise ValueError("tables of n-grams look at neighbours in the row: share no beginnings")

    def _mask(self, start: int, stop: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """(1, 1, T, T) additive; None where plain causal attention is the same."""
        if window is not None and window >= stop - start:
            window = None
        branches, positions = self.branch_ids[0, start:stop], self.positions[0, start:stop]
        if window is None and not bool(branches.any()):
            return None
        key = (start, window, dtype)
        if key not in self._masks:
            distance = positions[:, None] - positions[None, :]
            seen = (distance >= 0) & ((branches[None, :] == 0) | (branches[None, :] == branches[:, None]))
            if window is not None:
                seen &= distance < window
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self._masks[key] = mask[None, None]
        return self._masks[key]


def _runs(ids: list[int]) -> list[tuple[int, int]]:
    """(start, stop) of each stretch of equal numbers."""
    starts = [i for i in range(len(ids)) if i == 0 or ids[i] != ids[i - 1]]
    return list(zip(starts, [*starts[1:], len(ids)], strict=True))
