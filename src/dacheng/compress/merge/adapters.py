"""LoRA adapters of one base merged into one adapter: exactly, by putting their ranks together, or within a rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dacheng.compress.merge import methods
from dacheng.errors import UsageError
from dacheng.nn.lora import MAX_RANK, LoRAWeights
from dacheng.nn.lora_config import Adapter, LoRAConfig

Method = Literal["cat", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd"]
METHODS = ("cat", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd")


@torch.no_grad()
def merge_adapters(
    adapters: Sequence[Adapter], weights: Sequence[float], method: Method = "cat", *, rank: int | None = None,
    density: float = 0.5, seed: int = 1,
) -> Adapter:  # fmt: skip
    """ΔW = Σ w_i ΔW_i for every map that one of them adapts.

    cat: exact, with the sum of the ranks. svd: the nearest of `rank` (default: the largest of theirs) to that sum; with
    ties or dare, to what those make of the ΔW_i (the base counts as 0). Raises UsageError for DoRA (its lengths do not
    add up), another number of weights, and a rank above what an adapter may have.
    """
    if method not in METHODS:
        raise UsageError("no such method", field="method", value=method, remedy="one of " + ", ".join(METHODS))
    if not adapters or len(weights) != len(adapters):
        raise UsageError("every adapter has a weight", field="weights", value=list(weights), remedy="one for each")
    if any(adapter.config.use_dora for adapter in adapters):
        raise UsageError("DoRA's lengths do not add up", field="use_dora", value=True, remedy="merge it into the model")
    if len({adapter.base for adapter in adapters if adapter.base}) > 1:
        raise UsageError("they are for different models", field="base", value=sorted({a.base for a in adapters}),
                         remedy="merge adapters of one base")  # fmt: skip
    wanted = rank or max(part.rank for adapter in adapters for part in adapter.parts.values())
    parts: dict[str, LoRAWeights] = {}
    generator = torch.Generator().manual_seed(seed)
    for name in dict.fromkeys(name for adapter in adapters for name in adapter.parts):
        there = [(w, a.parts[name]) for w, a in zip(weights, adapters) if name in a.parts]
        parts[name] = _cat(there) if method == "cat" else _svd(there, method, wanted, density, generator)
    largest = max(part.rank for part in parts.values())
    if largest > MAX_RANK:
        raise UsageError(f"{largest} ranks together are too many", field="method", value=method, remedy="svd")
    ranks = {name: part.rank for name, part in parts.items() if part.rank != largest}
    config = LoRAConfig(rank=largest, alpha=float(largest), targets=tuple(parts), rank_pattern=ranks,
                        alpha_pattern={name: float(r) for name, r in ranks.items()})  # fmt: skip
    return Adapter(config, parts, next((adapter.base for adapter in adapters if adapter.base), ""))


def _cat(there: Sequence[tuple[float, LoRAWeights]]) -> LoRAWeights:
    a = torch.cat([part.a.float() for _, part in there])
    b = torch.cat([w * part.scale * part.b.float() for w, part in there], dim=1)
    return LoRAWeights(a, b, 1.0)


def _svd(
    there: Sequence[tuple[float, LoRAWeights]], method: Method, rank: int, density: float, generator: torch.Generator
) -> LoRAWeights:
    weights = [w for w, _ in there]
    deltas = [part.scale * (part.b.float() @ part.a.float()) for _, part in there]
    zero = torch.zeros_like(deltas[0])
    if method == "svd":
        delta = methods.task_arithmetic(zero, deltas, weights)
    elif method == "ties_svd":
        delta = methods.ties(zero, deltas, weights, density)
    else:
        delta = methods.dare(zero, deltas, weights, density, elect=method == "dare_ties_svd", generator=generator)
    a, b = low_rank(delta, min(rank, *delta.shape))
    return LoRAWeights(a, b, 1.0)


def low_rank(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """delta (out, in) -> A (r, in) and B (out, r), the nearest product of that rank (Eckart & Young 1936), its singular
    values shared out evenly."""
    u, s, vt = torch.linalg.svd(delta.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return root.unsqueeze(1) * vt[:rank], u[:, :rank] * root
