"""A decoder that says a number instead of a token: how good a text is (a reward model), or how good it will be (a
critic). The head is one row over the last hidden state, as in Ouyang et al. 2022, section 3.5."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import Context


class Scorer(nn.Module):
    """model(tokens (B, T), positions (B, T), context) -> hidden (B, T, D); model.score(hidden (..., D)) -> (...).

    The head begins at zero: every text has the score 0 at first, whatever the seed, and a loss on differences begins at
    ln 2. It is a linear map over the body's states, on the scale that the final norm leaves them.
    """

    def __init__(self, body: Decoder) -> None:
        super().__init__()
        self.body = body
        weight = body.embed.weight if hasattr(body.embed, "weight") else next(body.parameters())
        self.score_weight = nn.Parameter(torch.zeros(body.traits.width, device=weight.device))

    @property
    def traits(self) -> DecoderTraits:
        return self.body.traits

    def forward(self, tokens: Tensor, positions: Tensor, context: Context) -> Tensor:
        return self.body(tokens, positions, context)  # type: ignore[no-any-return]

    def score(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> (...) float32."""
        return hidden.float() @ self.score_weight

    def flops(self, context_length: int, training: bool = True) -> float:
        """As of the decoder, without its head over the vocabulary."""
        t = self.traits
        head = 2.0 * t.vocab_size * t.width * (3.0 if training else 1.0)
        return self.body.flops(context_length, training) - head + (6.0 if training else 2.0) * t.width
