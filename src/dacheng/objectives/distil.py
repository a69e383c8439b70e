"""Distillation: a student learns from a teacher's distributions, states and attention, and from the data beside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dacheng.errors import UsageError
from dacheng.nn.contexts import Bidirectional, Context
from dacheng.nn.recording import Attended, Recording, recorded_states
from dacheng.objectives.base import Metrics, StepContext, Term
from dacheng.objectives.classify import TERM as HARD
from dacheng.objectives.classify import Classify, class_counts
from dacheng.objectives.distil_losses import (
    attention_scores,
    cosine_states,
    relation_heads,
    relation_kl,
    soft_targets,
    squared_scores,
    squared_states,
)
from dacheng.objectives.distil_weights import DistilWeights

if TYPE_CHECKING:
    from dacheng.data.labelled import TextBatch

SOFT, STATES, ATTENTION = "soft", "states", "attention"


@dataclass(slots=True)
class Forward:
    """Of one network: what a loss may compare. states by number, attended by layer."""

    states: dict[int, Tensor]
    attended: dict[int, Attended]


def recorded(
    network: Any, call: Callable[[Context], Tensor], context: Context, states: Iterable[int], attended: Iterable[int]
) -> tuple[Tensor, Forward]:
    """What `call` returns, given a context, and what `network` (with its blocks) went through."""
    recording = Recording(context, attended)
    with recorded_states(network, states) as kept:
        return call(recording), Forward(kept, recording.kept)


def hidden_terms(
    weights: DistilWeights, student: Any, teacher: Any, mine: Forward, theirs: Forward, real: Tensor, visible: Tensor
) -> dict[str, Term]:
    """The terms `states` and `attention`, summed over the tokens that are no padding, real (B, T), and over the pairs
    of layers; visible (B, 1, 1 or T, T). student, teacher: the networks, which have blocks. A student of another width
    has a `projection` to the teacher's (see compress.distil.student)."""
    terms: dict[str, Term] = {}
    zero = torch.zeros((), device=real.device)
    if weights.states:
        total, measure = zero, cosine_states if weights.state_kind == "cosine" else squared_states
        for i, j in state_pairs(weights, student, teacher):
            state, wanted = mine.states[i], theirs.states[j]
            if (projection := getattr(student, "projection", None)) is not None:
                state = projection(state)
            if state.shape[-1] != wanted.shape[-1]:
                raise UsageError(
                    f"states of width {state.shape[-1]} are compared with such of {wanted.shape[-1]}", field="states",
                    value=weights.states, remedy="compare attention's relations, which have no width",
                )  # fmt: skip
            total = total + (measure(state, wanted) * real).sum()
        terms[STATES] = Term(total, weights.states)
    if weights.attention:
        total = zero
        for i, j in attention_pairs(weights, student, teacher):
            total = total + (_attention_loss(weights, mine.attended[i], theirs.attended[j], visible) * real).sum()
        terms[ATTENTION] = Term(total, weights.attention)
    return terms


def _attention_loss(weights: DistilWeights, mine: Attended, theirs: Attended, visible: Tensor) -> Tensor:
    """(B, T)."""
    if weights.attention_kind == "relations2":
        parts = [
            (relation_heads(a, weights.relation_heads), relation_heads(b, weights.relation_heads))
            for a, b in ((mine.q, theirs.q), (mine.k, theirs.k), (mine.v, theirs.v))
        ]
        return torch.stack([relation_kl(_relations(a), _relations(b), visible) for a, b in parts]).sum(0)
    if mine.q.shape[1] != theirs.q.shape[1]:
        raise UsageError(f"{mine.q.shape[1]} heads are compared with {theirs.q.shape[1]}", field="attention_kind",
                         value=weights.attention_kind, remedy="relations2, which cuts both into as many")  # fmt: skip
    a, b = attention_scores(mine.q, mine.k, mine.scale), attention_scores(theirs.q, theirs.k, theirs.scale)
    if weights.attention_kind == "scores":
        return squared_scores(a, b, visible)
    times = mine.q.shape[1] // mine.v.shape[1]
    return relation_kl(a, b, visible) + relation_kl(
        _relations(mine.v.repeat_interleave(times, 1)), _relations(theirs.v.repeat_interleave(times, 1)), visible
    )  # fmt: skip


def _relations(states: Tensor) -> Tensor:
    """(B, H, T, E) -> X Xᵀ / sqrt(E), (B, H, T, T)."""
    return attention_scores(states, states, states.shape[-1] ** -0.5)


def state_pairs(weights: DistilWeights, student: Any, teacher: Any) -> tuple[tuple[int, int], ...]:
    """(student's, teacher's) numbers of states."""
    if not weights.states:
        return ()
    return weights.pairs(len(student.blocks), len(teacher.blocks), weights.state_kind == "squared")


def attention_pairs(weights: DistilWeights, student: Any, teacher: Any) -> list[tuple[int, int]]:
    """Numbers of layers, from 0: state i is what leaves block i - 1, and the embedding attends to nothing."""
    if not weights.attention:
        return []
    pairs = weights.pairs(len(student.blocks), len(teacher.blocks), weights.attention_kind == "scores")
    return [(i - 1, j - 1) for i, j in pairs if i > 0 and j > 0]


@dataclass(slots=True)
class DistilText:
    """A classifier learns from another, on batches of data.labelled.

    teacher: a Classifier with the student's labels; not run, and not needed, where the batch brings its logits and
    neither states nor attention count. teacher_name: tells teachers apart when a run is resumed.
    """

    teacher: Any
    weights: DistilWeights = field(default_factory=DistilWeights)
    teacher_name: str = ""
    label_smoothing: float = 0.0
    couples_batch: bool = False

    @property
    def deep(self) -> bool:
        return bool(self.weights.states or self.weights.attention)

    def counts(self, batch: TextBatch) -> dict[str, float]:
        w, tokens = self.weights, float(batch.lengths.sum())
        counts = {SOFT: float(len(batch.lengths))} if w.soft else {}
        counts |= {HARD: class_counts(batch.labels)} if w.hard else {}
        return counts | ({STATES: tokens} if w.states else {}) | ({ATTENTION: tokens} if w.attention else {})

    def __call__(self, model: Any, batch: TextBatch, ctx: StepContext) -> tuple[dict[str, Term], Metrics]:
        """Raises UsageError where neither a teacher nor its logits are there, and where the two cannot be compared."""
        w, known = self.weights, batch.teacher
        if self.teacher is None and (self.deep or known is None):
            raise UsageError("neither a teacher nor its logits are there", field="teacher", value=None,
                             remedy="give the teacher, or store its logits")  # fmt: skip
        states: Sequence[tuple[int, int]] = ()
        attended: Sequence[tuple[int, int]] = ()
        if self.deep:
            states = state_pairs(w, model.encoder, self.teacher.encoder)
            attended = attention_pairs(w, model.encoder, self.teacher.encoder)
        logits, mine = _text_forward(model, batch, [i for i, _ in states], [i for i, _ in attended])
        hard, metrics = Classify(self.label_smoothing).of_logits(logits, batch)
        terms = {HARD: Term(hard[HARD].sum, w.hard)} if w.hard else {}
        if self.deep or known is None:
            with torch.no_grad():
                made, theirs = _text_forward(self.teacher, batch, [j for _, j in states], [j for _, j in attended])
            known = made if known is None else known
        if w.soft:
            soft = soft_targets(logits, known, w.temperature).sum()
            agree = (logits.detach().argmax(-1) == known.argmax(-1)).sum()
            terms[SOFT] = Term(soft, w.soft)
            metrics |= {SOFT: (soft.detach(), float(len(logits))), "agreement": (agree, float(len(logits)))}
        if self.deep:
            real = torch.arange(batch.tokens.shape[1], device=logits.device) < batch.lengths[:, None]
            visible = real[:, None, None, :]
            terms |= hidden_terms(w, model.encoder, self.teacher.encoder, mine, theirs, real, visible)
        return terms, metrics


def _text_forward(model: Any, batch: TextBatch, states: list[int], attended: list[int]) -> tuple[Tensor, Forward]:
    if not states and not attended:
        return model(batch.tokens, batch.lengths), Forward({}, {})
    return recorded(
        model.encoder, lambda context: model(batch.tokens, batch.lengths, context), Bidirectional(batch.lengths),
        states, attended,
    )  # fmt: skip
