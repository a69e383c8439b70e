"""Learning from preferences: which loss of a pair, or of a labelled answer, as an objective for the trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dacheng.errors import DachengError, UsageError
from dacheng.objectives.base import Metrics, StepContext, Term
from dacheng.objectives.cross_entropy import IGNORED
from dacheng.objectives.logps import model_logps
from dacheng.objectives.preference_losses import (
    DpoKind,
    LossOut,
    PairLogps,
    check_constants,
    cpo,
    dpo,
    kto,
    kto_kl,
    orpo,
    simpo,
)
from dacheng.objectives.routing import routed_layers, routing_counts, routing_terms
from dacheng.objectives.shared_prompts import answer_logps

if TYPE_CHECKING:
    from dacheng.data.pairs import PairBatch

__all__ = [
    "LossOut", "PairLogps", "Preference", "PreferenceConfig", "cpo", "dpo", "kto", "kto_kl", "orpo", "simpo",
]  # fmt: skip

Loss = Literal["dpo", "ipo", "hinge", "robust", "conservative", "kto", "orpo", "simpo", "cpo"]
_WITHOUT_REFERENCE = ("orpo", "simpo", "cpo")
_WITH_NLL = ("orpo", "cpo")


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """Which loss of this page, and its constants. Raises UsageError for values that no loss has.

    beta: null is 0.1, of simpo 2. label_smoothing: of robust, conservative, simpo, cpo. gamma_ratio: of simpo.
    ipo_normalise: of ipo. desirable_weight, undesirable_weight: of kto. nll_weight: of the chosen answers' mean
    negative log-likelihood per token, added to the loss; null is 1 for orpo and cpo (their papers'), else 0. chunk:
    tokens whose logits are held at once.
    """

    loss: Loss = "dpo"
    beta: float | None = None
    label_smoothing: float = 0.0
    gamma_ratio: float = 0.5
    ipo_normalise: Literal["token", "sum"] = "token"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    nll_weight: float | None = None
    chunk: int = 512

    def __post_init__(self) -> None:
        smooths = self.loss in ("robust", "conservative", "simpo", "cpo")
        check_constants(self.strength, self.label_smoothing, smooths, self.loss)
        if self.loss == "kto" and self.likelihood_weight:
            raise UsageError("kto has no chosen answers", field="nll_weight", value=self.nll_weight, remedy="null")

    @property
    def strength(self) -> float:
        """beta, or the loss's own."""
        return self.beta if self.beta is not None else 2.0 if self.loss == "simpo" else 0.1

    @property
    def likelihood_weight(self) -> float:
        """nll_weight, or the loss's own."""
        return self.nll_weight if self.nll_weight is not None else float(self.loss in _WITH_NLL)

    @property
    def needs_reference(self) -> bool:
        return self.loss not in _WITHOUT_REFERENCE


class Preference:
    """A loss on preferences, nats (or what the loss has) per pair; for kto per answer.

    reference: gives (model, batch) -> (2P,) sums of the reference's log-probabilities, for batches that do not carry
    them; it is called without gradient. routed: for a model with experts, as in NextToken.

    For kto, batch.desirable (P,) marks the answers in rows 0 … P-1; row P + p is the prompt of p with another's answer,
    from which the reference point is estimated. That estimate couples the batch, so accumulation is refused.
    """

    def __init__(
        self,
        config: PreferenceConfig | None = None,
        reference: Callable[[Any, PairBatch], Tensor] | None = None,
        routed: bool = False,
    ) -> None:
        self.config = config if config is not None else PreferenceConfig()
        self.reference, self.routed = reference, routed
        self.couples_batch = self.config.loss == "kto"

    def counts(self, batch: PairBatch) -> dict[str, float]:
        pairs = batch.tokens.shape[0] // 2
        counts = {"preference": float(pairs)}
        if self.config.likelihood_weight:
            counts["nll"] = float((batch.targets[:pairs] != IGNORED).sum())
        return counts | routing_counts(self._learnt(batch)) if self.routed else counts

    def __call__(self, model: Any, batch: PairBatch, ctx: StepContext) -> tuple[dict[str, Term], Metrics]:
        """See data.pairs.PairBatch. Raises DachengError for an answer without a token to learn from, and where a
        reference or labels are needed and absent."""
        c, counts = self.config, self.counts(batch)
        tokens = (batch.targets != IGNORED).sum(-1)
        if bool((tokens == 0).any()):
            raise DachengError("an answer has no token to learn from", field="targets", value=tokens.tolist(),
                               remedy="drop such pairs")  # fmt: skip
        reference = self._reference(model, batch)
        if c.loss == "kto":
            logps, out = self._kto(model, batch, reference)
        else:
            logps = answer_logps(model, batch.tokens, batch.targets, chunk=c.chunk)
            (chosen, rejected), (chosen_tokens, rejected_tokens) = logps.sum(-1).chunk(2), tokens.chunk(2)
            out = self._paired(PairLogps(chosen, rejected, chosen_tokens, rejected_tokens), reference)
        terms = {"preference": Term(out.per_example.sum())}
        metrics: Metrics = {"preference_loss": (out.per_example.detach().sum(), counts["preference"])}
        metrics |= {name: (values.sum(), float(values.numel())) for name, values in out.metrics.items()}
        if c.likelihood_weight:
            nll = -logps.chunk(2)[0].sum()
            terms["nll"] = Term(nll, c.likelihood_weight)
            metrics["nll_loss"] = (nll.detach(), counts["nll"])
        return terms | self._routing(model, batch), metrics

    def _paired(self, policy: PairLogps, reference: Tensor | None) -> LossOut:
        c, beta = self.config, self.config.strength
        if c.loss == "orpo":
            return orpo(policy, beta)
        if c.loss == "simpo":
            return simpo(policy, beta, c.gamma_ratio, c.label_smoothing)
        if c.loss == "cpo":
            return cpo(policy, beta, label_smoothing=c.label_smoothing)
        assert reference is not None and c.loss != "kto"
        chosen, rejected = reference.chunk(2)
        theirs = PairLogps(chosen, rejected, policy.chosen_tokens, policy.rejected_tokens)
        kind: DpoKind = "sigmoid" if c.loss == "dpo" else c.loss
        return dpo(policy, theirs, beta, kind, c.label_smoothing, c.ipo_normalise)

    def _kto(self, model: Any, batch: PairBatch, reference: Tensor | None) -> tuple[Tensor, LossOut]:
        c = self.config
        assert reference is not None
        if batch.desirable is None:
            raise UsageError("kto learns from single answers, each marked", field="desirable", remedy="label the batch")
        (tokens, others), (targets, other_targets) = batch.tokens.chunk(2), batch.targets.chunk(2)
        with torch.no_grad():
            mismatched = model_logps(model, others, other_targets, chunk=c.chunk).sum(-1)
        logps = model_logps(model, tokens, targets, chunk=c.chunk)
        own, of_others = reference.chunk(2)
        point = kto_kl(mismatched, of_others)
        weights = c.desirable_weight, c.undesirable_weight
        return logps, kto(logps.sum(-1), own, batch.desirable, point, c.strength, *weights)

    def _reference(self, model: Any, batch: PairBatch) -> Tensor | None:
        if not self.config.needs_reference:
            return None
        if batch.reference is not None:
            return batch.reference
        if self.reference is None:
            raise UsageError(f"{self.config.loss} compares with a reference", field="reference",
                             remedy="batches with its log-probabilities, or Preference(reference=…)")  # fmt: skip
        with torch.no_grad():
            return self.reference(model, batch)

    def _learnt(self, batch: PairBatch) -> Tensor:
        """The targets of the rows that have a gradient."""
        return batch.targets.chunk(2)[0] if self.config.loss == "kto" else batch.targets

    def _routing(self, model: Any, batch: PairBatch) -> dict[str, Term]:
        layers = routed_layers(model) if torch.is_grad_enabled() else []
        if not layers:
            return {}
        if not self.routed:
            raise UsageError("the model has experts", field="routed", value=False, remedy="Preference(routed=True)")
        targets = self._learnt(batch)
        steps = torch.arange(targets.shape[1], device=targets.device)
        return routing_terms(layers, targets, steps < batch.lengths[: targets.shape[0], None].to(targets.device))
