"""From logits to tokens: pure functions over rows (R, V), and the state that belongs to one request.

The order is that of transformers and TRL: repetition penalty, temperature, top-k, top-p (of what top-k left), min-p.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dacheng.protocols import SamplingParams

NEAR_TIE = 1e-4  # two logits closer than this may change places when float32 sums are taken in another order
TOP_P_PREFIX = 64  # how many of the largest probabilities top-p looks at first; times 8 until they suffice


class SamplerState:
    """What one request brings to its draws: its parameters, its own random stream, and the tokens it has seen.

    The stream is read once for each sampled token, so the text does not depend on what else is in the batch.
    """

    __slots__ = ("generator", "params", "seen")

    def __init__(self, params: SamplingParams, seed: int, vocab_size: int, prompt: Iterable[int]) -> None:
        self.params = params
        self.generator = torch.Generator().manual_seed(seed)
        self.seen: Tensor | None = None  # (V,) boolean
        if params.repetition_penalty != 1.0:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool)
            self.seen[list(prompt)] = True

    def note(self, token_id: int) -> None:
        if self.seen is not None:
            self.seen[token_id] = True

    def uniform(self) -> float:
        return torch.rand((), generator=self.generator, dtype=torch.float64).item()


@dataclass(frozen=True, slots=True)
class Choice:
    """A sampled token. `logprob`: under the model itself, before penalty, temperature and filters (vLLM's default).
    near_tie: it was the greedy choice and the runner-up's logit is less than NEAR_TIE below."""

    token_id: int
    logprob: float | None = None
    near_tie: bool = False


def sample(logits_RV: Tensor, states: Sequence[SamplerState]) -> list[Choice | None]:
    """One token for each row, as its request's parameters say; None where the logits are no distribution (a NaN, +inf,
    or nothing above -inf), and then nothing is drawn from that request's stream."""
    largest = logits_RV.amax(-1).tolist()  # NaN if there is one
    if not all(map(math.isfinite, largest)):
        good = [row for row, value in enumerate(largest) if math.isfinite(value)]
        sampled = iter(sample(logits_RV[good], [states[row] for row in good]) if good else [])
        return [next(sampled) if math.isfinite(value) else None for value in largest]
    adjusted = _penalised(logits_RV, states)
    greedy_rows = [row for row, state in enumerate(states) if state.params.temperature == 0]
    random_rows = [row for row, state in enumerate(states) if state.params.temperature != 0]
    chosen, ties = [0] * len(states), [False] * len(states)
    if greedy_rows:
        for row, token, tie in zip(greedy_rows, *greedy(_rows(adjusted, greedy_rows))):
            chosen[row], ties[row] = token, tie
    if random_rows:
        probs = probabilities(_rows(adjusted, random_rows), [states[row].params for row in random_rows])
        uniforms = torch.tensor([states[row].uniform() for row in random_rows], dtype=torch.float64)
        for row, token in zip(random_rows, draw(probs, uniforms.to(probs.device)).tolist()):
            chosen[row] = token
    logprobs = _chosen_logprobs(logits_RV, states, chosen)
    return [Choice(token, logprob, tie) for token, logprob, tie in zip(chosen, logprobs, ties)]


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


def penalise(logits_RV: Tensor, seen_RV: Tensor, penalty_R1: Tensor) -> Tensor:
    """Repetition penalty θ: logits of seen tokens are divided by θ where positive and multiplied where negative, so
    that θ > 1 always makes them less likely (Keskar et al. 2019, CTRL, section 4.1, in the sign-aware form of
    transformers and vLLM). `seen` covers prompt and generated tokens."""
    return torch.where(seen_RV, torch.where(logits_RV > 0, logits_RV / penalty_R1, logits_RV * penalty_R1), logits_RV)


def tempered(logits_RV: Tensor, temperature_R1: Tensor) -> Tensor:
    """softmax(logits / temperature), temperature > 0: any, as the largest logit is taken off before it divides."""
    return torch.softmax((logits_RV - logits_RV.amax(-1, keepdim=True)) / temperature_R1, dim=-1)


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


def _penalised(logits_RV: Tensor, states: Sequence[SamplerState]) -> Tensor:
    rows = [row for row, state in enumerate(states) if state.seen is not None]
    if not rows:
        return logits_RV
    seen = torch.stack([state.seen for state in states if state.seen is not None]).to(logits_RV.device)
    penalty = logits_RV.new_tensor([states[row].params.repetition_penalty for row in rows]).unsqueeze(1)
    adjusted = logits_RV.clone()
    adjusted[rows] = penalise(logits_RV[rows], seen[:, : logits_RV.shape[1]], penalty)
    return adjusted


def _chosen_logprobs(logits_RV: Tensor, states: Sequence[SamplerState], chosen: list[int]) -> list[float | None]:
    logprobs: list[float | None] = [None] * len(states)
    rows = [row for row, state in enumerate(states) if state.params.logprobs]
    if rows:
        of_rows = _rows(logits_RV, rows)
        ids = torch.tensor([chosen[row] for row in rows], device=of_rows.device).unsqueeze(1)
        for row, value in zip(rows, (of_rows.gather(1, ids).squeeze(1) - of_rows.logsumexp(-1)).tolist()):
            logprobs[row] = value
    return logprobs
