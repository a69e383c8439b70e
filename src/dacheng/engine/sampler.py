"""From logits to tokens: pure functions over rows (R, V), and the state that belongs to one request.

What changes logits comes first (adjust.py), then, in the order of transformers and TRL: temperature, top-k, top-p (of
what top-k left), min-p.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.engine.adjust import adjusted, penalise
from dacheng.engine.state import SamplerState
from dacheng.objectives.logps import token_logps
from dacheng.protocols import SamplingParams, TopLogprobs

__all__ = [
    "Choice",
    "Proposal",
    "SamplerState",
    "draw",
    "first_largest",
    "greedy",
    "penalise",
    "probabilities",
    "sample",
    "sample_each",
    "verify",
]

NEAR_TIE = 1e-4  # two logits closer than this may change places when float32 sums are taken in another order
TOP_P_PREFIX = 64  # how many of the largest probabilities top-p looks at first; times 8 until they suffice


@dataclass(frozen=True, slots=True)
class Choice:
    """A sampled token. logprob, top_logprobs: under the model itself, before penalties, biases, temperature and filters
    (vLLM's default). near_tie: it was the greedy choice and the runner-up's logit is less than NEAR_TIE below."""

    token_id: int
    logprob: float | None = None
    near_tie: bool = False
    top_logprobs: TopLogprobs | None = None


Proposal = tuple[int, Tensor]  # a token that was drawn, and the probabilities (V,) that it was drawn from


def sample(
    logits_RV: Tensor, states: Sequence[SamplerState], proposals: Sequence[Proposal | None] = ()
) -> list[Choice | None]:
    """One token for each row, as its request's parameters say; None where the logits are no distribution (a NaN, +inf,
    or nothing above -inf), and then nothing is drawn from that request's stream. proposals: none, or for each row the
    token that is to be taken if it may (see `verify`)."""
    proposals = proposals or [None] * len(states)
    largest = logits_RV.amax(-1).tolist()  # NaN if there is one
    if not all(map(math.isfinite, largest)):
        good = [row for row, value in enumerate(largest) if math.isfinite(value)]
        states, proposals = [states[row] for row in good], [proposals[row] for row in good]
        sampled = iter(sample(logits_RV[good], states, proposals) if good else [])
        return [next(sampled) if math.isfinite(value) else None for value in largest]
    adjusted_RV = adjusted(logits_RV, states)
    greedy_rows = [row for row, state in enumerate(states) if state.params.temperature == 0]
    random_rows = [row for row, state in enumerate(states) if state.params.temperature != 0]
    chosen, ties = [0] * len(states), [False] * len(states)
    if greedy_rows:
        for row, token, tie in zip(greedy_rows, *greedy(_rows(adjusted_RV, greedy_rows))):
            chosen[row], ties[row] = token, tie
    if random_rows:
        probs = probabilities(_rows(adjusted_RV, random_rows), [states[row].params for row in random_rows])
        taken = [verify(probs[i], proposals[row], states[row]) for i, row in enumerate(random_rows)]
        uniforms = [0.0 if token >= 0 else states[row].uniform() for token, row in zip(taken, random_rows)]
        drawn = draw(probs, torch.tensor(uniforms, dtype=torch.float64, device=probs.device)).tolist()
        for row, accepted, token in zip(random_rows, taken, drawn):
            chosen[row] = accepted if accepted >= 0 else token
    logprobs, tops = _logprobs(logits_RV, states, chosen)
    return [Choice(*of_row) for of_row in zip(chosen, logprobs, ties, tops)]


def sample_each(
    logits_RV: Tensor, states: Sequence[SamplerState], proposals: Sequence[Proposal | None] = ()
) -> list[Choice | None]:
    """As `sample`, a row at a time: a sum over the vocabulary may go another way where there are more rows."""
    proposals = proposals or [None] * len(states)
    rows = range(len(states))
    return [sample(logits_RV[row : row + 1], states[row : row + 1], proposals[row : row + 1])[0] for row in rows]


def verify(probs_V: Tensor, proposal: Proposal | None, state: SamplerState) -> int:
    """Rejection sampling: with p the row and q what the proposal was drawn from, it is taken with probability
    min(1, p/q); else the row becomes max(p - q, 0), from which the token is to be drawn, and -1 is returned. Whatever
    q, what comes out is distributed as p (Leviathan et al. 2023, algorithm 1 and appendix A.1)."""
    if proposal is None:
        return -1
    token, q_V = proposal
    p_V = probs_V / probs_V.sum()
    if state.uniform() * q_V[token].item() < p_V[token].item():
        return token
    residual_V = (p_V - q_V).clamp_(min=0.0)
    if residual_V.amax() > 0:  # it is not where p = q but for rounding
        probs_V.copy_(residual_V)
    return -1


def greedy(logits_RV: Tensor) -> tuple[list[int], list[bool]]:
    """The most likely token of each row, the lowest id on ties; and whether the runner-up is within NEAR_TIE."""
    values, ids = logits_RV.topk(min(2, logits_RV.shape[1]))
    gaps = (values[:, 0] - values[:, -1]).tolist() if values.shape[1] > 1 else [math.inf] * len(values)
    tokens = ids[:, 0].tolist()
    if 0.0 in gaps:  # topk promises no order among equals; argmax returns the first
        tokens = logits_RV.argmax(-1).tolist()
    return tokens, [gap < NEAR_TIE for gap in gaps]


def probabilities(logits_RV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """(R, V) of what may be drawn, unnormalised: temperature, top-k, top-p and min-p of each row applied."""

    def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits_RV.device).unsqueeze(1)

    V = logits_RV.shape[1]
    probs = tempered(logits_RV, column([p.temperature for p in params]))
    top_k = [p.top_k if 0 < p.top_k < V else V for p in params]
    counts = torch.tensor(top_k, device=probs.device)
    if any(p.top_p < 1 for p in params):
        counts = top_p_counts(probs, counts, column([p.top_p for p in params], torch.float64))
    allowed: Tensor | None = None
    if any(k < V for k in top_k) or any(p.top_p < 1 for p in params):
        allowed = first_largest(probs, counts)
    if any(p.min_p > 0 for p in params):
        likely = probs >= column([p.min_p for p in params]) * probs.amax(-1, keepdim=True)
        allowed = likely if allowed is None else allowed & likely
    return probs if allowed is None else probs * allowed


def tempered(logits_RV: Tensor, temperature_R1: Tensor) -> Tensor:
    """softmax(logits / temperature), temperature > 0: any, as the largest logit is taken off before it divides, and
    what is 0 in float32 is the smallest number that is not."""
    divisor_R1 = temperature_R1.clamp(min=torch.finfo(temperature_R1.dtype).tiny)
    return torch.softmax((logits_RV - logits_RV.amax(-1, keepdim=True)) / divisor_R1, dim=-1)


def first_largest(values_RV: Tensor, counts_R: Tensor) -> Tensor:
    """Boolean (R, V): exactly counts_R of each row, those that come first by value, then by lowest id."""
    V = values_RV.shape[1]
    limited = counts_R < V
    longest = int(torch.where(limited, counts_R, 1).max())
    ordered = values_RV.topk(longest).values
    threshold = ordered.gather(1, (counts_R.clamp(max=longest) - 1).unsqueeze(1))
    above, at = values_RV > threshold, values_RV == threshold
    room = (counts_R - above.sum(-1)).unsqueeze(1)
    return above | (at & (at.cumsum(-1) <= room)) | ~limited.unsqueeze(1)


def top_p_counts(probs_RV: Tensor, counts_R: Tensor, top_p_R1: Tensor) -> Tensor:
    """How many of each row's largest probabilities make up the nucleus: the fewest, and at least one, whose mass is at
    least top_p of the mass of the row's counts_R largest (Holtzman et al. 2020, eq. 3). Where top_p is 1: counts_R.

    Only as many probabilities are sorted as are needed, mostly TOP_P_PREFIX of them: a full sort costs more than
    the whole forward of a small model.
    """
    V = probs_RV.shape[1]
    limited, off = counts_R < V, top_p_R1.squeeze(1) >= 1
    whole = probs_RV.sum(-1, dtype=torch.float64)
    prefix = min(V, max(TOP_P_PREFIX, int(torch.where(limited, counts_R, 1).max())))
    while True:
        ordered = probs_RV.topk(prefix).values.double()
        ordered *= torch.arange(prefix, device=ordered.device) < counts_R.unsqueeze(1)
        mass = ordered.cumsum(-1)
        wanted = top_p_R1 * torch.where(limited, mass[:, -1], whole).unsqueeze(1)
        if prefix == V or bool((off | (mass[:, -1:] >= wanted).squeeze(1)).all()):
            break
        prefix = min(8 * prefix, V)
    nucleus = (mass - ordered < wanted).sum(-1).clamp(min=1)
    return torch.where(off, counts_R, torch.minimum(nucleus, counts_R))


def draw(probs_RV: Tensor, uniform_R: Tensor) -> Tensor:
    """Token ids (R,) by inversion: the first whose cumulative probability exceeds uniform · total.

    Summed in float64; a token of probability 0 is never drawn. uniform_R: float64 in [0, 1).
    """
    cumulative = probs_RV.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1]
    target = torch.minimum(uniform_R * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)


def _rows(logits_RV: Tensor, rows: list[int]) -> Tensor:
    return logits_RV if len(rows) == len(logits_RV) else logits_RV[rows]


def _logprobs(
    logits_RV: Tensor, states: Sequence[SamplerState], chosen: list[int]
) -> tuple[list[float | None], list[TopLogprobs | None]]:
    logprobs: list[float | None] = [None] * len(states)
    tops: list[TopLogprobs | None] = [None] * len(states)
    rows = [row for row, state in enumerate(states) if state.params.logprobs]
    if rows:
        of_rows = _rows(logits_RV, rows)
        divisors = [states[row].params.temperature if states[row].params.processed_logprobs else 1.0 for row in rows]
        if any(divisor != 1.0 for divisor in divisors):
            of_rows = of_rows / torch.tensor(divisors, device=of_rows.device).unsqueeze(1)
        chosen_ids = torch.tensor([chosen[row] for row in rows], device=of_rows.device)
        for row, value in zip(rows, token_logps(of_rows, chosen_ids).tolist()):
            logprobs[row] = value
        counts = [states[row].params.top_logprobs for row in rows]
        if any(counts):
            norms = of_rows.logsumexp(-1)
            for row, count, best in zip(rows, counts, _best(of_rows, norms, max(counts))):
                tops[row] = best[:count] if count else None
    return logprobs, tops


def prompt_logprobs(logits_RV: Tensor, targets: Sequence[int], count: int) -> list[TopLogprobs]:
    """For each row, the `count` best tokens and, at the end where it is not among them, its target."""
    if not targets:
        return []
    norms = logits_RV.logsumexp(-1)
    ids = torch.tensor(targets, device=logits_RV.device).unsqueeze(1)
    found = (logits_RV.gather(1, ids).squeeze(1) - norms).tolist()
    rows = _best(logits_RV, norms, count) if count else [[] for _ in targets]
    for best, target, logprob in zip(rows, targets, found):
        if all(token != target for token, _ in best):
            best.append((target, logprob))
    return rows


def _best(logits_RV: Tensor, norms_R: Tensor, count: int) -> list[TopLogprobs]:
    values, ids = logits_RV.topk(min(count, logits_RV.shape[1]))
    return [list(zip(*row)) for row in zip(ids.tolist(), (values - norms_R.unsqueeze(1)).tolist())]
