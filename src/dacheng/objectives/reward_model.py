"""Losses of models that score: which of two answers is better, and whether each step of one is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from dacheng.errors import UsageError
from dacheng.nn.contexts import DenseCausal
from dacheng.objectives.base import Metrics, StepContext, Term
from dacheng.objectives.preference_losses import LossOut

if TYPE_CHECKING:
    from dacheng.data.pairs import PairBatch

NO_STEP = -100.0
"""The label of a position that ends no step."""


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None, centre: float = 0.0) -> LossOut:
    """-log σ(chosen - rejected - margin) + centre · (chosen + rejected)², all (P,) (Ouyang et al. 2022, eq. 1; margin:
    Touvron et al. 2023, eq. 2; centre: Eisenstein et al. 2023, which fixes the zero that the first part leaves
    free). Equal scores cost ln 2.
    """
    gap = chosen - rejected
    loss = -logsigmoid(gap if margin is None else gap - margin)
    if centre:
        loss = loss + centre * (chosen + rejected).square()
    with torch.no_grad():
        metrics = {
            "accuracy": (gap > 0).float(),
            "margin": gap.detach(),
            "mean_reward": (chosen + rejected).detach() / 2,
        }
    return LossOut(loss, metrics)


def process_reward(scores: Tensor, labels: Tensor) -> LossOut:
    """Cross-entropy of σ(score) at the last token of each step (Lightman et al. 2023, section 2.6; with labels between
    0 and 1, Wang et al. 2024, Math-Shepherd).

    scores (B, T); labels (B, T): the probability that the step ending here is right, -100 where none ends. per_example
    is (N,), one a step in reading order. Raises UsageError for a label that is neither.
    """
    kept = labels != NO_STEP
    wanted, found = labels[kept].to(scores.dtype), scores[kept]
    if bool(((wanted < 0) | (wanted > 1)).any()):
        raise UsageError("a label is a probability, or -100", field="labels", value=wanted.tolist(), remedy="0 or 1")
    loss = binary_cross_entropy_with_logits(found, wanted, reduction="none")
    with torch.no_grad():
        right = ((found > 0) == (wanted > 0.5)).float()
    return LossOut(loss, {"accuracy": right})


@dataclass(slots=True)
class RewardRanking:
    """Bradley–Terry loss of a scoring model on pairs, nats per pair.

    The model is a decoder body with `score(hidden (..., D)) -> (...)`, read at each text's last token. centre: as in
    `bradley_terry`. A batch's `margin` is used where it has one.
    """

    centre: float = 0.0
    couples_batch: bool = False

    def counts(self, batch: PairBatch) -> dict[str, float]:
        return {"ranking": float(batch.tokens.shape[0] // 2)}

    def __call__(self, model: Any, batch: PairBatch, ctx: StepContext) -> tuple[dict[str, Term], Metrics]:
        """batch.tokens (2P, T), lengths (2P,): the chosen ones first. See data.pairs.PairBatch."""
        chosen, rejected = last_token_scores(model, batch.tokens, batch.lengths).chunk(2)
        out = bradley_terry(chosen, rejected, batch.margin, self.centre)
        pairs = float(chosen.shape[0])
        metrics: Metrics = {"loss": (out.per_example.detach().sum(), pairs)}
        metrics |= {name: (values.sum(), pairs) for name, values in out.metrics.items()}
        return {"ranking": Term(out.per_example.sum())}, metrics


def last_token_scores(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """The score of each text, at its last token: tokens (B, T) right-padded, lengths (B,) -> (B,)."""
    hidden = model(tokens, torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens), DenseCausal())
    rows = torch.arange(tokens.shape[0], device=tokens.device)
    return model.score(hidden[rows, lengths.to(tokens.device) - 1])  # type: ignore[no-any-return]
