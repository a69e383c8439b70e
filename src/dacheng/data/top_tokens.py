"""Batches that carry what a teacher finds likeliest at each of their positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.data.batches import TokenBatch


@dataclass(slots=True)
class TopTokens(TokenBatch):
    """top_tokens (B, T, k) int64 and top_logps (B, T, k) float32: the teacher's k likeliest next tokens at each
    position with a target, at the temperature that they were stored at; zeros elsewhere."""

    top_tokens: Tensor | None = None
    top_logps: Tensor | None = None

    def to(self, device: torch.device | str) -> TopTokens:
        moved = TokenBatch.to(self, device)
        tokens, logps = (None if t is None else t.to(device) for t in (self.top_tokens, self.top_logps))
        return TopTokens(
            moved.tokens, moved.targets, moved.positions, moved.document_ids, moved.branch_ids, tokens, logps
        )  # fmt: skip
