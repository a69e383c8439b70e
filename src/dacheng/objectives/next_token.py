"""Next-token prediction: the objective of pretraining (Radford et al. 2018, eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dacheng.errors import UsageError
from dacheng.nn.branches import SharedBeginnings
from dacheng.nn.contexts import Context, DenseCausal, PackedDocuments
from dacheng.objectives.base import Metrics, StepContext, Term
from dacheng.objectives.cross_entropy import IGNORED, linear_cross_entropy
from dacheng.objectives.routing import routed_layers, routing_counts, routing_terms

if TYPE_CHECKING:
    from dacheng.data.batches import TokenBatch


def context_for(batch: TokenBatch) -> Context:
    """The attention context a batch asks for: packed where it carries document ids, dense otherwise; with branches, of
    beginnings that are shared."""
    if batch.branch_ids is not None and batch.document_ids is not None:
        return SharedBeginnings(batch.document_ids, batch.branch_ids, batch.positions)
    return DenseCausal() if batch.document_ids is None else PackedDocuments(batch.document_ids)


@dataclass(slots=True)
class NextToken:
    """Mean negative log-likelihood of the targets, in nats per token.

    chunk: tokens whose logits are held at once. z_loss: weight of logsumexp² (PaLM, section 5), 0 for none. routed:
    for a model with experts, adds the terms of `objectives.routing` with the weights that its traits say.
    """

    chunk: int = 512
    z_loss: float = 0.0
    routed: bool = False
    couples_batch: bool = False

    def counts(self, batch: TokenBatch) -> dict[str, float]:
        counts = {"next_token": float((batch.targets != IGNORED).sum())}
        return counts | routing_counts(batch.targets) if self.routed else counts

    def __call__(self, model: Any, batch: TokenBatch, ctx: StepContext) -> tuple[dict[str, Term], Metrics]:
        """batch.tokens, targets, positions (B, T); see data.batches.TokenBatch. A batch without targets adds zero.

        Raises UsageError when the model has experts and `routed` is not set: their losses would be left out.
        """
        hidden = model(batch.tokens, batch.positions, context_for(batch))
        nats, z = linear_cross_entropy(
            hidden.flatten(0, 1),
            model.head_weight,
            batch.targets.flatten(),
            soft_cap=model.traits.logit_soft_cap,
            z_loss=self.z_loss,
            chunk=self.chunk,
        )
        count = self.counts(batch)["next_token"]
        metrics: Metrics = {"loss": (nats.detach(), count)}
        if self.z_loss:
            metrics["z"] = (z, count)
        terms = {"next_token": Term(nats)}
        layers = routed_layers(model) if torch.is_grad_enabled() else []
        if layers:
            if not self.routed:
                raise UsageError("the model has experts", field="routed", value=False, remedy="NextToken(routed=True)")
            ids = batch.document_ids
            valid = torch.ones_like(batch.targets, dtype=torch.bool) if ids is None else ids >= 0
            terms |= routing_terms(layers, batch.targets, valid)
        return terms, metrics
