"""The table of token embeddings, which may be the head as well."""

from __future__ import annotations

from torch import Tensor, nn


class Embedding(nn.Embedding):
    """ids (...) -> (..., D). A packed (quantised) table shares both calls."""

    def as_head(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits (..., V) of a tied head, in the dtype of `hidden`."""
        return nn.functional.linear(hidden, self.weight)
