"""NEFTune: uniform noise on the embeddings while instructions are learnt (Jain et al. 2023, arXiv 2310.05914)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dacheng.data.batches import TokenBatch
from dacheng.errors import UsageError
from dacheng.objectives.base import Metrics, Objective, StepContext, Term


@dataclass(slots=True)
class Neftune:
    """Another objective, trained under noise: x + ε · alpha / √(L · D), ε uniform in (-1, 1), for the embeddings x of a
    text of L tokens and width D (algorithm 1). Outside of training, and with alpha 0, it is the other objective to the
    bit.

    L is the length of each text by itself, packed or padded (of texts that share a beginning, the longest). The noise
    is drawn from the step's "dropout" stream, so a resumed run draws it again. Raises UsageError for alpha below 0.
    """

    objective: Objective
    alpha: float = 5.0
    couples_batch: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and math.isfinite(self.alpha)):
            raise UsageError("no such noise", field="neftune", value=self.alpha, remedy="0 for none; 5 is usual")
        self.couples_batch = self.objective.couples_batch

    def counts(self, batch: TokenBatch) -> dict[str, float]:
        return self.objective.counts(batch)

    def __call__(self, model: Any, batch: TokenBatch, ctx: StepContext) -> tuple[dict[str, Term], Metrics]:
        if not ctx.training or not self.alpha:
            return self.objective(model, batch, ctx)
        bound = self.alpha / (text_lengths(batch).unsqueeze(-1) * float(model.traits.width)).sqrt()  # (B, T, 1)

        def noisy(_module: Any, _inputs: Any, embedded: Tensor) -> Tensor:
            noise = torch.empty_like(embedded, dtype=torch.float32).uniform_(-1, 1, generator=ctx.generator)
            return embedded + (noise * bound).to(embedded.dtype)

        hook = model.embed.register_forward_hook(noisy)
        try:
            return self.objective(model, batch, ctx)
        finally:
            hook.remove()


def text_lengths(batch: TokenBatch) -> Tensor:
    """(B, T) float32: for each position, how many tokens the text has that it is part of; 1 and more. Padding has the
    length of the first text: nothing is learnt there."""
    ends = batch.positions + 1
    if batch.document_ids is None:  # one text a row; the positions of the padding begin at 0 again
        text = (batch.positions == 0).cumsum(-1) <= 1
        return ends.where(text, 0).amax(-1, keepdim=True).expand_as(ends).float()
    ends, ids = ends.where(batch.document_ids >= 0, 0), batch.document_ids.clamp(min=0)
    longest = torch.zeros(len(ids), int(ids.max()) + 1, dtype=ends.dtype, device=ids.device)
    return longest.scatter_reduce_(1, ids, ends, "amax").gather(1, ids).float()
