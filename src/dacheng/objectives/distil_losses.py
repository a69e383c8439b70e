"""What a student is made to share with its teacher: pure functions of tensors, each a number for each row or token.

The teacher's side has no gradient to want; nothing here detaches it, callers compute it without.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dacheng.errors import UsageError


def soft_targets(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)) in nats: logits (..., C) twice -> (...).

    T² keeps the gradient's size when T changes (Hinton, Vinyals & Dean 2015, section 2).
    """
    same_classes(student, teacher)
    q = F.log_softmax(student.float() / temperature, dim=-1)
    p = F.log_softmax(teacher.float() / temperature, dim=-1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1) * temperature**2


def stored_targets(student: Tensor, tokens: Tensor, logps: Tensor, temperature: float = 1.0) -> Tensor:
    """The same where only the teacher's k likeliest were stored: the rest of each distribution counts as one outcome.

    student (..., V) logits; tokens (..., k) int64 and logps (..., k), the teacher's at this same temperature -> (...).
    By the chain rule this is the whole KL less what the teacher says about the shares within the rest: never more than
    it, and equal to it at k = V.
    """
    q = F.log_softmax(student.float() / temperature, dim=-1).gather(-1, tokens)
    p = logps.float()
    shared = (p.exp() * (p - q)).sum(-1)
    p_rest, q_rest = _rest(p), _rest(q)
    return (shared + p_rest.exp() * (p_rest - q_rest)) * temperature**2


def _rest(logps: Tensor) -> Tensor:
    """log(1 - Σ exp(logps)), not below 1e-7: what is stored may sum to one but for rounding."""
    return torch.log1p(-logps.exp().sum(-1).clamp(max=1 - 1e-7))


def generalized_jsd(student: Tensor, teacher: Tensor, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """Generalised Jensen–Shannon divergence β·KL(p ‖ m) + (1-β)·KL(q ‖ m), m = β·p + (1-β)·q, p the teacher's and q
    the student's distribution: logits (..., V) twice -> (...). β = 0 is KL(p ‖ q), β = 1 is KL(q ‖ p).

    Agarwal et al. 2024 (GKD), eq. 1, with the two ends as TRL's GKDTrainer has them; without T².
    """
    same_classes(student, teacher)
    q = F.log_softmax(student.float() / temperature, dim=-1)
    p = F.log_softmax(teacher.float() / temperature, dim=-1)
    if beta == 0:
        return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    if beta == 1:
        return F.kl_div(p, q, reduction="none", log_target=True).sum(-1)
    m = torch.logaddexp(q + math.log1p(-beta), p + math.log(beta))
    to_p = F.kl_div(m, p, reduction="none", log_target=True).sum(-1)
    to_q = F.kl_div(m, q, reduction="none", log_target=True).sum(-1)
    return beta * to_p + (1 - beta) * to_q


def cosine_states(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos of the two states of a token: (..., D) twice -> (...). DistilBERT's third term (Sanh et al. 2019, section
    3), on the last layer."""
    return 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)


def squared_states(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over D of the squared difference: (..., D) twice -> (...). TinyBERT's hidden and embedding losses (Jiao et
    al. 2020, eq. 8 and 9); a student of another width is projected before."""
    return (student.float() - teacher.float()).square().mean(-1)


def squared_scores(student: Tensor, teacher: Tensor, visible: Tensor) -> Tensor:
    """TinyBERT's attention loss (eq. 7): the squared difference of the scores before the softmax.

    student, teacher (B, H, T, T) scaled scores without a mask; visible (B, 1, 1 or T, T), False where a query does not
    look -> (B, T): of each query, the mean over heads and the keys it sees. (The paper's code averages over padding
    too.)
    """
    seen = visible.float()
    difference = (student.float() - teacher.float()).square() * seen
    return difference.sum(-1).mean(1) / seen.sum(-1)[:, 0].clamp(min=1)


def attention_scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """q (B, H, T, E), k (B, K, S, E) with H a multiple of K -> (B, H, T, S), before mask and softmax."""
    times = q.shape[1] // k.shape[1]
    return q @ (k if times == 1 else k.repeat_interleave(times, dim=1)).transpose(-1, -2) * scale


def masked_log_softmax(scores: Tensor, visible: Tensor) -> Tensor:
    """scores (B, H, T, S) -> log-probabilities over what is visible; 0 for the rest, which counts nothing."""
    return scores.float().masked_fill(~visible, -1e9).log_softmax(-1).masked_fill(~visible, 0.0)


def relation_kl(student: Tensor, teacher: Tensor, visible: Tensor) -> Tensor:
    """KL(teacher ‖ student) of each query's distribution over what it sees, the mean over heads: the loss of MiniLM
    (Wang et al. 2020, eq. 5 and 8), of attention's own distributions and of those of X Xᵀ / sqrt(E), X the values.

    student, teacher: scores (B, H, T, S) before the softmax -> (B, T).
    """
    q, p = masked_log_softmax(student, visible), masked_log_softmax(teacher, visible)
    return (p.exp() * (p - q) * visible).sum(-1).mean(1)


def relation_heads(states: Tensor, heads: int) -> Tensor:
    """(B, H, T, E) -> (B, heads, T, H·E/heads): all heads beside each other, cut anew, so that student and teacher have
    as many (MiniLM v2, Wang et al. 2021, section 3.1)."""
    B, H, T, E = states.shape
    if H * E % heads:
        raise UsageError(f"{H * E} channels are no whole number of heads", field="relation_heads", value=heads,
                         remedy=f"for example {H}")  # fmt: skip
    return states.transpose(1, 2).reshape(B, T, heads, H * E // heads).transpose(1, 2)


def same_classes(student: Tensor, teacher: Tensor) -> None:
    """Raises UsageError where the two do not speak of the same outcomes."""
    if student.shape[-1] != teacher.shape[-1]:
        raise UsageError(
            f"the teacher tells {teacher.shape[-1]} outcomes apart and the student {student.shape[-1]}",
            field="teacher", value=[teacher.shape[-1], student.shape[-1]],
            remedy="both need one vocabulary, or the same labels; else let the teacher write data (sequence level)",
        )  # fmt: skip
