"""Distillation of a decoder, token by token: from a teacher at hand, or from its likeliest tokens in a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dacheng.errors import UsageError
from dacheng.nn.contexts import DenseCausal, PackedDocuments, causal_mask
from dacheng.objectives.base import Metrics, StepContext, Term
from dacheng.objectives.cross_entropy import IGNORED
from dacheng.objectives.distil import (
    ATTENTION,
    SOFT,
    STATES,
    Forward,
    attention_pairs,
    hidden_terms,
    recorded,
    state_pairs,
)
from dacheng.objectives.distil_losses import generalized_jsd, stored_targets
from dacheng.objectives.distil_weights import DistilWeights
from dacheng.objectives.next_token import context_for

if TYPE_CHECKING:
    from dacheng.data.batches import TokenBatch

NEXT = "next_token"


@dataclass(slots=True)
class DistilTokens:
    """At every position that has a target, the teacher's distribution over the next token (word-level distillation,
    Kim & Rush 2016, section 3.1; GKD's generalised divergence, Agarwal et al. 2024, eq. 1).

    teacher: a Decoder with the student's vocabulary, or None where every batch brings its likeliest tokens (data.
    top_tokens). beta: 0 for KL(teacher ‖ student), 1 for the reverse, between for Jensen–Shannon. weights.hard: of the
    targets' own cross-entropy; of no use where the student wrote them. T² multiplies where beta is 0, as Hinton et al.
    have it; elsewhere not, as GKD has it. chunk: tokens whose logits are held at once.
    """

    teacher: Any
    weights: DistilWeights
    beta: float = 0.0
    teacher_name: str = ""
    chunk: int = 256
    couples_batch: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise UsageError("must lie in [0, 1]", field="beta", value=self.beta, remedy="0, 0.5 or 1")

    def counts(self, batch: TokenBatch) -> dict[str, float]:
        w, targets = self.weights, float((batch.targets != IGNORED).sum())
        names = [(SOFT, w.soft), (NEXT, w.hard), (STATES, w.states), (ATTENTION, w.attention)]
        return {name: targets for name, weight in names if weight}

    def __call__(self, model: Any, batch: TokenBatch, ctx: StepContext) -> tuple[dict[str, Term], Metrics]:
        """Raises UsageError where the two cannot be compared, or nothing is known of the teacher."""
        w, stored = self.weights, getattr(batch, "top_tokens", None) is not None
        deep = bool(w.states or w.attention)
        if self.teacher is None and (deep or not stored):
            raise UsageError("neither a teacher nor its likeliest tokens are there", field="teacher", value=None,
                             remedy="give the teacher, or store them first")  # fmt: skip
        if stored and self.beta != 0:
            raise UsageError("only KL(teacher ‖ student) can be told from the likeliest tokens", field="beta",
                             value=self.beta, remedy="beta: 0, or a teacher that is at hand")  # fmt: skip
        teacher = model if self.teacher is None else self.teacher
        if teacher.traits.vocab_size != model.traits.vocab_size:
            raise UsageError(
                f"the teacher has {teacher.traits.vocab_size} tokens and the student {model.traits.vocab_size}",
                field="vocab_size", value=model.traits.vocab_size,
                remedy="take a student with the teacher's tokenizer, or let the teacher write data (sequence level)",
            )  # fmt: skip
        states, attended = (state_pairs(w, model, teacher), attention_pairs(w, model, teacher)) if deep else ((), [])
        hidden, mine = _forward(model, batch, [i for i, _ in states], [i for i, _ in attended])
        kept = batch.targets != IGNORED
        theirs, wanted = Forward({}, {}), None
        if deep or not stored:
            with torch.no_grad():
                wanted, theirs = _forward(teacher, batch, [j for _, j in states], [j for _, j in attended])
        sums = self._over_chunks(model, hidden[kept], batch, kept, None if stored or wanted is None else wanted[kept])
        terms = {name: Term(total, weight) for name, total, weight in (
            (SOFT, sums[0], w.soft), (NEXT, sums[1], w.hard)) if weight}  # fmt: skip
        if deep:
            terms |= hidden_terms(w, model, teacher, mine, theirs, kept, _visible(batch))
        count = float(kept.sum())
        return terms, {"loss": (sums[1].detach(), count), SOFT: (sums[0].detach(), count)}

    def _over_chunks(
        self, model: Any, hidden: Tensor, batch: Any, kept: Tensor, wanted: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Sums of the soft and the hard losses; hidden, wanted (N, D). The logits of a chunk are made anew for its
        gradient, so that never more than `chunk` rows of them are there."""
        targets = batch.targets[kept]
        top = (batch.top_tokens[kept], batch.top_logps[kept]) if wanted is None else None
        soft = torch.zeros((), device=hidden.device)
        hard = torch.zeros_like(soft)
        for start in range(0, len(targets), self.chunk):
            rows = slice(start, start + self.chunk)
            known = (wanted[rows], None) if wanted is not None else (top[0][rows], top[1][rows])  # type: ignore[index]
            a, b = checkpoint(self._chunk, model, hidden[rows], targets[rows], *known, use_reentrant=False)
            soft, hard = soft + a, hard + b
        return soft, hard

    def _chunk(
        self, model: Any, hidden: Tensor, targets: Tensor, known: Tensor, top_logps: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """known: the teacher's hidden states (N, D'), or its likeliest tokens (N, k) with their log-probabilities."""
        logits = model.head(hidden)
        hard = F.cross_entropy(logits, targets, reduction="sum")
        temperature = self.weights.temperature
        if top_logps is not None:
            return stored_targets(logits, known, top_logps, temperature).sum(), hard
        with torch.no_grad():
            teacher = self.teacher.head(known)
        scale = temperature**2 if self.beta == 0 else 1.0
        return generalized_jsd(logits, teacher, self.beta, temperature).sum() * scale, hard


def _forward(model: Any, batch: TokenBatch, states: list[int], attended: list[int]) -> tuple[Tensor, Forward]:
    if not states and not attended:
        return model(batch.tokens, batch.positions, context_for(batch)), Forward({}, {})
    return recorded(
        model, lambda context: model(batch.tokens, batch.positions, context), context_for(batch), states, attended
    )  # fmt: skip


def _visible(batch: TokenBatch) -> Tensor:
    """(B, 1, T, T): what a token looks at."""
    T, device = batch.tokens.shape[1], batch.tokens.device
    steps = torch.arange(T, device=device)
    causal = causal_mask(steps, steps, None)
    context = context_for(batch)
    if isinstance(context, PackedDocuments):
        ids = context.document_ids
        return (causal & (ids[:, :, None] == ids[:, None, :]))[:, None]
    if not isinstance(context, DenseCausal):
        raise UsageError("states and attention of rows with shared beginnings are not compared", field="data",
                         value="shared beginnings", remedy="share_beginnings: false")  # fmt: skip
    return causal.expand(len(batch.tokens), 1, T, T)
