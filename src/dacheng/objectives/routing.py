"""What keeps the experts of a mixture in use: losses on what the routers of the last forward decided."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dacheng.nn.moe import MoE, Routing
from dacheng.objectives.base import Term
from dacheng.objectives.cross_entropy import IGNORED

BALANCE, ROUTER_Z = "balance", "router_z"


def routed_layers(model: Any) -> list[MoE]:
    """The layers of experts of a model, in order; none of a dense one."""
    return [module for module in model.modules() if isinstance(module, MoE)] if hasattr(model, "modules") else []


def routing_counts(targets: Tensor) -> dict[str, float]:
    """targets (B, T), ignored ones -100: rows, and tokens, of the texts that anything is learnt from."""
    rows = (targets != IGNORED).any(-1)
    return {BALANCE: float(rows.sum()), ROUTER_Z: float(rows.sum() * targets.shape[1])}


def routing_terms(layers: list[MoE], targets: Tensor, valid: Tensor) -> dict[str, Term]:
    """The terms of the layers' last forward over a batch, and the experts' loads counted for the trainer.

    valid (B, T): False for padding. balance: a row at a time, N / (k · T) · Σ_e tokens_e · mean score_e, 1 when even,
    summed over the layers (Switch Transformer, eq. 4, for each sequence as in DeepSeek-V3, eq. 17 to 20): rows are
    independent, so accumulation does not change it. Each layer by itself: pooled over layers, one layer's idle experts
    would hide behind another's. router_z: logsumexp² of the logits (ST-MoE, eq. 5).
    """
    learnt = (targets != IGNORED).any(-1, keepdim=True)
    weight = (valid & learnt).float()  # (B, T)
    terms: dict[str, Term] = {}
    balance_weight, z_weight = layers[0].traits.balance_loss, layers[0].traits.router_z_loss
    balance = torch.zeros((), device=targets.device)
    z = torch.zeros((), device=targets.device)
    for layer in layers:
        routing, layer.routing = layer.routing, None
        assert routing is not None, "the model was run without gradients"
        chosen = _chosen(routing, weight)
        layer.load += chosen.detach().sum(0)
        if balance_weight:
            balance = balance + _balance(routing, chosen, weight, layer.traits.experts_per_token)
        if z_weight:
            z = z + (routing.logits.logsumexp(-1).square() * weight.flatten()).sum()
    if balance_weight:
        terms[BALANCE] = Term(balance, balance_weight)
    if z_weight:
        terms[ROUTER_Z] = Term(z, z_weight)
    return terms


def _chosen(routing: Routing, weight_BT: Tensor) -> Tensor:
    """How often each row chose each expert: (B, N)."""
    B, T = weight_BT.shape
    experts = routing.scores.shape[-1]
    counts = torch.zeros(B, experts, device=weight_BT.device)
    k = routing.chosen.shape[-1]
    return counts.scatter_add_(1, routing.chosen.view(B, T * k), weight_BT.repeat_interleave(k, dim=1))


def _balance(routing: Routing, chosen_BN: Tensor, weight_BT: Tensor, per_token: int) -> Tensor:
    B, T = weight_BT.shape
    scores = routing.scores / routing.scores.sum(-1, keepdim=True)  # a sigmoid's do not sum to 1
    tokens = weight_BT.sum(-1, keepdim=True).clamp(min=1.0)  # (B, 1)
    mean_scores = (scores.view(B, T, -1) * weight_BT.unsqueeze(-1)).sum(1) / tokens  # (B, N)
    share = chosen_BN / (tokens * per_token)
    return scores.shape[-1] * (share * mean_scores).sum()
