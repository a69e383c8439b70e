"""Which experts a mixture really uses, on some text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dacheng.compress.prune.importance import hooked
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.nn.moe import MoE, Router, Routing
from dacheng.objectives.next_token import context_for

if TYPE_CHECKING:
    from dacheng.data.batches import TokenBatch


@dataclass(frozen=True, slots=True)
class LayerUsage:
    """load: share of the choices that fell on each expert. weight: its mean weight where it was chosen. peak: the
    largest load over the mean (1 is even); idle: experts that nobody chose; entropy: of the loads, 1 is even. pairs:
    the experts most often chosen together, and for which share of the tokens (none where a token has one expert)."""

    layer: int
    load: list[float]
    weight: list[float]
    peak: float
    idle: int
    entropy: float
    pairs: list[tuple[int, int, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ExpertUsage:
    """A layer at a time: pooled over layers, one layer's collapse would hide behind another's."""

    tokens: int
    layers: list[LayerUsage]

    def table(self) -> str:
        lines = ["layer  peak load  idle  entropy  most used (share)       most often together"]
        for u in self.layers:
            best = sorted(range(len(u.load)), key=lambda e: -u.load[e])[:3]
            used = ", ".join(f"{e} ({u.load[e]:.0%})" for e in best)
            pair = f"{u.pairs[0][0]} and {u.pairs[0][1]} ({u.pairs[0][2]:.0%})" if u.pairs else ""
            lines.append(f"{u.layer:>5}  {u.peak:>9.2f}  {u.idle:>4}  {u.entropy:>7.3f}  {used:<22}  {pair}".rstrip())
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def expert_usage(model: Decoder, batches: Iterable[TokenBatch]) -> ExpertUsage:
    """Over all tokens of the batches, padding left out where the batch says which it is. Raises UsageError for a model
    without experts, and for no text."""
    layers = [(i, b.mlp) for i, b in enumerate(model.blocks) if isinstance(b.mlp, MoE)]
    if not layers:
        raise UsageError("the model has no experts", field="model", remedy="upcycle it first")
    counts = {i: torch.zeros(m.traits.experts, dtype=torch.float64) for i, m in layers}
    weights = {i: torch.zeros(m.traits.experts, dtype=torch.float64) for i, m in layers}
    pairs = {i: torch.zeros(m.traits.experts, m.traits.experts, dtype=torch.float64) for i, m in layers}
    place: dict[nn.Module, int] = {m.router: i for i, m in layers}
    valid: Tensor | None = None
    tokens = 0

    def collect(router: nn.Module, _inputs: Any, routing: Routing) -> None:
        assert isinstance(router, Router)
        layer, chosen, share = place[router], routing.chosen, routing.weights.double()
        if valid is not None:
            chosen, share = chosen[valid], share[valid]
        counts[layer] += torch.bincount(chosen.flatten(), minlength=len(counts[layer])).double()
        weights[layer].index_add_(0, chosen.flatten(), share.flatten())
        picked = torch.zeros(len(chosen), len(counts[layer]), dtype=torch.float64).scatter_(1, chosen, 1.0)
        pairs[layer] += picked.T @ picked

    training = model.training
    model.eval()
    try:
        with hooked(place, collect):
            for batch in batches:
                valid = None if batch.document_ids is None else (batch.document_ids >= 0).flatten()
                tokens += batch.tokens.numel() if valid is None else int(valid.sum())
                model(batch.tokens, batch.positions, context_for(batch))
    finally:
        model.train(training)
    if not tokens:
        raise UsageError("there is no text to route", field="batches", remedy="give at least one batch")
    return ExpertUsage(tokens, [_usage(i, counts[i], weights[i], pairs[i] / tokens) for i, _ in layers])


def _usage(layer: int, counts: Tensor, weights: Tensor, pairs: Tensor) -> LayerUsage:
    load = counts / counts.sum()
    entropy = float(torch.special.entr(load).sum()) / math.log(len(load))
    together = pairs.triu(1).flatten()
    top = together.topk(min(3, len(together))).indices.tolist() if len(load) > 1 else []
    n = len(load)
    named = [(k // n, k % n, float(together[k])) for k in top if together[k] > 0]
    mean_weight = (weights / counts.clamp(min=1)).tolist()
    return LayerUsage(
        layer, load.tolist(), mean_weight, float(load.max()) * n, int((counts == 0).sum()), entropy, named
    )
