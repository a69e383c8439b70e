"""Classification: the cross-entropy of a text's class (Devlin et al. 2019, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dacheng.errors import UsageError
from dacheng.objectives.base import Metrics, StepContext, Term
from dacheng.objectives.cross_entropy import IGNORED

if TYPE_CHECKING:
    from dacheng.data.labelled import TextBatch

TERM = "classify"


def classify(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Σ over the rows whose label is not -100 of w_y · -log p(y), in nats; its mean divides by `class_counts`.

    logits (B, C), labels (B,) int64. label_smoothing ε: the target is (1 - ε) at y and ε/C everywhere (Szegedy et al.
    2016, section 7), as torch's cross_entropy has it. class_weights (C,): for classes of different sizes.
    """
    return F.cross_entropy(
        logits.float(), labels, class_weights, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
    )


def class_counts(labels: Tensor, class_weights: Tensor | None = None) -> float:
    """What the sum of `classify` is divided by: the labels that are known, or the weights of these."""
    known = labels[labels != IGNORED]
    return float(known.numel() if class_weights is None else class_weights[known].sum())


@dataclass(slots=True)
class Classify:
    """The objective on batches of data.labelled. class_weights: one number a class, None for all alike."""

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    couples_batch: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(
                "must lie in [0, 1)", field="label_smoothing", value=self.label_smoothing, remedy="0, or 0.1"
            )
        if self.class_weights is not None and not all(0 < weight < float("inf") for weight in self.class_weights):
            raise UsageError("a weight must be positive", field="class_weights", value=self.class_weights, remedy="1")

    def counts(self, batch: TextBatch) -> dict[str, float]:
        return {TERM: class_counts(batch.labels, self._weights(batch.labels))}

    def __call__(self, model: Any, batch: TextBatch, ctx: StepContext) -> tuple[dict[str, Term], Metrics]:
        return self.of_logits(model(batch.tokens, batch.lengths), batch)

    def of_logits(self, logits: Tensor, batch: TextBatch) -> tuple[dict[str, Term], Metrics]:
        """The term and the metrics of logits (B, C)."""
        weights = self._weights(batch.labels)
        total = classify(logits, batch.labels, label_smoothing=self.label_smoothing, class_weights=weights)
        known = float((batch.labels != IGNORED).sum())
        right = (logits.detach().argmax(-1) == batch.labels).sum()
        return {TERM: Term(total)}, {"loss": (total.detach(), self.counts(batch)[TERM]), "accuracy": (right, known)}

    def _weights(self, labels: Tensor) -> Tensor | None:
        return None if self.class_weights is None else torch.tensor(self.class_weights, device=labels.device)


def balanced_weights(labels: Tensor, classes: int) -> tuple[float, ...]:
    """N / (C · count) of each class (King & Zeng 2001), as scikit-learn's "balanced". A class without an example: 1."""
    counts = torch.bincount(labels[labels != IGNORED], minlength=classes)
    total = float(counts.sum())
    return tuple(total / (classes * float(count)) if count else 1.0 for count in counts)
