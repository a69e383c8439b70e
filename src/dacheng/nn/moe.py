"""Mixture of experts (Shazeer et al. 2017): each token goes through few of many networks. Dropless: none is turned
away, whatever the load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dacheng.nn.mlp import GATED, MLP, activate, gated

SMALL = 1e-20  # DeepSeek-V3's, against a division by zero


@dataclass(frozen=True, kw_only=True)
class MoETraits:
    """What a layer of experts is made of.

    `pattern`: M for layers of experts, D for dense ones, repeated over the layers. score: how the router's logits
    become weights, softmax over all experts or a sigmoid of each. normalize: the chosen weights sum to 1. groups:
    experts are chosen only from the `groups_per_token` best of so many groups, a group as good as its best expert or
    the sum of its two best (DeepSeek-V2, section 2.2.2; V3, section 2.1.2). score_bias: a bias per expert that counts
    in the choice and not in the weight, and that the trainer moves against the load (Wang et al. 2024, algorithm 1).
    balance_loss, router_z_loss: weights of the losses of objectives.routing.
    """

    experts: int
    experts_per_token: int
    expert_width: int
    shared_width: int = 0  # of the network that every token goes through besides; 0: none
    pattern: str = "M"
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    routed_scale: float = 1.0
    groups: int = 1
    groups_per_token: int = 1
    group_score: Literal["best", "two_best"] = "best"
    score_bias: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    balance_loss: float = 0.0
    router_z_loss: float = 0.0


class Routing(NamedTuple):
    """What a router decided: logits and scores (M, N) of all experts, `chosen` (M, k) and their weights (M, k)."""

    logits: Tensor
    scores: Tensor
    chosen: Tensor
    weights: Tensor


class Router(nn.Module):
    """Token -> experts. Computed in float32: two experts may be close."""

    score_bias: Tensor | None

    def __init__(self, width: int, traits: MoETraits) -> None:
        super().__init__()
        self.traits = traits
        self.weight = nn.Parameter(torch.empty(traits.experts, width))
        self.bias = nn.Parameter(torch.zeros(traits.experts)) if traits.router_bias else None
        self.register_buffer("score_bias", torch.zeros(traits.experts) if traits.score_bias else None)

    def forward(self, x_MD: Tensor) -> Routing:
        t = self.traits
        with torch.autocast(x_MD.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            logits = F.linear(x_MD.float(), self.weight.float(), bias)
            scores = logits.softmax(-1) if t.score == "softmax" else logits.sigmoid()
            chosen = self._choose(scores.detach())
            weights = scores.gather(-1, chosen)
            if t.normalize:
                weights = weights / (weights.sum(-1, keepdim=True) + SMALL)
        return Routing(logits, scores, chosen, weights * t.routed_scale)

    def _choose(self, scores_MN: Tensor) -> Tensor:
        t = self.traits
        if self.score_bias is not None:
            scores_MN = scores_MN + self.score_bias.float()
        if t.groups > 1:
            by_group = scores_MN.unflatten(-1, (t.groups, -1))  # (M, G, N/G)
            best = 1 if t.group_score == "best" else 2
            group_scores = by_group.topk(best, dim=-1).values.sum(-1)
            allowed = group_scores.topk(t.groups_per_token, dim=-1, sorted=False).indices
            outside = torch.ones_like(group_scores, dtype=torch.bool).scatter_(-1, allowed, False)
            # not 0: with a negative bias, a score that is allowed may lie below it
            scores_MN = by_group.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(-2)
        return scores_MN.topk(t.experts_per_token, dim=-1).indices


class Experts(nn.Module):
    """The networks of all experts, stacked: gate and up (N, F, D), down (N, D, F), as `Dense` holds one."""

    def __init__(self, width: int, traits: MoETraits, activation: str) -> None:
        super().__init__()
        n, f = traits.experts, traits.expert_width
        self.activation = activation
        self.gate = nn.Parameter(torch.empty(n, f, width)) if activation in GATED else None
        self.up = nn.Parameter(torch.empty(n, f, width))
        self.down = nn.Parameter(torch.empty(n, width, f))
        bias = traits.expert_bias
        self.gate_bias = nn.Parameter(torch.zeros(n, f)) if bias and activation in GATED else None
        self.up_bias = nn.Parameter(torch.zeros(n, f)) if bias else None
        self.down_bias = nn.Parameter(torch.zeros(n, width)) if bias else None

    def forward(self, x: Tensor, expert: int) -> Tensor:
        """The tokens (m, D) that chose `expert` -> (m, D)."""

        def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.linear(x, weight[expert], None if bias is None else bias[expert])

        up = linear(x, self.up, self.up_bias)
        if self.gate is None:
            hidden = activate(self.activation, up)
        else:
            hidden = gated(self.activation, linear(x, self.gate, self.gate_bias), up)
        return linear(hidden, self.down, self.down_bias)


class MoE(nn.Module):
    """Σ weight_e · expert_e(x) over the chosen experts, plus the shared network. x (..., D) -> (..., D).

    Tokens are sorted by expert, so that each expert is one matrix product over just its tokens. While gradients are
    recorded, `routing` holds the last decision for the objective, and `load` (N,) counts for the trainer.
    """

    load: Tensor

    def __init__(self, width: int, traits: MoETraits, activation: str, bias: bool = False) -> None:
        super().__init__()
        self.traits = traits
        self.router = Router(width, traits)
        self.experts = Experts(width, traits, activation)
        self.shared = MLP(width, traits.shared_width, activation, bias) if traits.shared_width else None
        self.routing: Routing | None = None
        self.register_buffer("load", torch.zeros(traits.experts), persistent=False)

    def rebuild(self, device: torch.device | str = "cpu") -> None:
        """The counts, after the model was made on the meta device."""
        self.load = torch.zeros(self.traits.experts, device=device)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)  # (M, D)
        routing = self.router(flat)
        if torch.is_grad_enabled():
            self.routing = routing
        order = routing.chosen.flatten().argsort(stable=True)  # (M·k,): by expert, then by token
        counts = torch.bincount(routing.chosen.flatten(), minlength=self.traits.experts).tolist()
        tokens = order // self.traits.experts_per_token
        parts = [self.experts(part, expert) for expert, part in enumerate(flat[tokens].split(counts)) if counts[expert]]
        by_choice = torch.cat(parts)[order.argsort()].unflatten(0, routing.chosen.shape)  # (M, k, D)
        out = (by_choice * routing.weights.to(by_choice.dtype).unsqueeze(-1)).sum(1).view_as(x)
        return out if self.shared is None else out + self.shared(x)

    @torch.no_grad()
    def reset(self, std: float, residual_std: float, generator: torch.Generator | None) -> None:
        """Normal weights (std 0: zeros), zero biases; the router with `std` as well, so that choices differ."""
        draws = [(self.router.weight, std), (self.experts.gate, std), (self.experts.up, std)]
        for weight, deviation in [*draws, (self.experts.down, residual_std)]:
            if weight is not None:
                weight.normal_(0.0, deviation, generator=generator) if deviation > 0 else weight.zero_()
        for zeroed in (self.router.bias, self.router.score_bias):
            if zeroed is not None:
                zeroed.zero_()
        for bias in (self.experts.gate_bias, self.experts.up_bias, self.experts.down_bias):
            if bias is not None:
                bias.zero_()
        if self.shared is not None:
            self.shared.reset(std, residual_std, generator)
