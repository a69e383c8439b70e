"""What changes logits before they are sampled from: bias, penalties, tokens that may not come yet.

In the order of vLLM: logit bias, repetition penalty, frequency and presence penalty; what is forbidden comes last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dacheng.engine.state import SamplerState


def adjusted(logits_RV: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """The rows as their requests' parameters say; the logits themselves where none says anything."""
    if not any(state.adjusts for state in states):
        return logits_RV
    out_RV, device = logits_RV.clone(), logits_RV.device
    V = out_RV.shape[1]
    for row, state in enumerate(states):
        if state.bias is not None:
            ids, values = state.bias
            out_RV[row, ids.to(device)] += values.to(out_RV)
    if rows := [row for row, state in enumerate(states) if state.seen is not None]:
        seen = torch.stack([state.seen for state in states if state.seen is not None]).to(device)
        penalty = out_RV.new_tensor([states[row].params.repetition_penalty for row in rows]).unsqueeze(1)
        out_RV[rows] = penalise(out_RV[rows], seen[:, :V], penalty)
    if rows := [row for row, state in enumerate(states) if state.counts is not None]:
        counts = torch.stack([state.counts for state in states if state.counts is not None]).to(device)
        params = [states[row].params for row in rows]
        frequency = out_RV.new_tensor([p.frequency_penalty for p in params]).unsqueeze(1)
        presence = out_RV.new_tensor([p.presence_penalty for p in params]).unsqueeze(1)
        out_RV[rows] = penalise_generated(out_RV[rows], counts[:, :V], frequency, presence)
    for row, state in enumerate(states):
        if state.forbids and state.forbidden is not None:
            out_RV[row, state.forbidden.to(device)] = -math.inf
        if (allowed := state.allowed()) is not None:
            out_RV[row].masked_fill_(~allowed[:V].to(device), -math.inf)
    return out_RV


def penalise(logits_RV: Tensor, seen_RV: Tensor, penalty_R1: Tensor) -> Tensor:
    """Repetition penalty θ: logits of seen tokens are divided by θ where positive and multiplied where negative, so
    that θ > 1 always makes them less likely (Keskar et al. 2019, CTRL, section 4.1, in the sign-aware form of
    transformers and vLLM). `seen` covers prompt and generated tokens."""
    return torch.where(seen_RV, torch.where(logits_RV > 0, logits_RV / penalty_R1, logits_RV * penalty_R1), logits_RV)


def penalise_generated(logits_RV: Tensor, counts_RV: Tensor, frequency_R1: Tensor, presence_R1: Tensor) -> Tensor:
    """logit − count · frequency − (count > 0) · presence, of generated tokens only (OpenAI, API reference)."""
    return logits_RV - counts_RV * frequency_R1 - (counts_RV > 0) * presence_R1
