"""Several fine-tuned models of one base made into one, tensor by tensor: no training, no data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dacheng.errors import UsageError

Method = Literal["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"]
METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")
NEEDS_BASE = ("task_arithmetic", "ties", "dare_linear", "dare_ties")
_NEARLY_PARALLEL = 0.9995  # cosine from which an arc is a line


def linear(tensors: Sequence[Tensor], weights: Sequence[float], normalize: bool = True) -> Tensor:
    """Σ w_i x_i / Σ w_i (Wortsman et al. 2022, "model soups", section 2)."""
    total = sum(weights)
    if normalize and abs(total) < 1e-8:
        raise UsageError("the weights sum to 0", field="weights", value=list(weights), remedy="or normalize: false")
    summed = _weighted(tensors, weights)
    return summed / total if normalize else summed


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The arc from a (t = 0) to b (t = 1) over the directions of the flattened tensors (Shoemake 1985, eq. for Slerp):
    sin((1-t)θ)/sin θ · a + sin(tθ)/sin θ · b. A line where they are nearly parallel, or one of them is 0."""
    x, y = a.double(), b.double()
    length = x.norm() * y.norm()
    cosine = float((x * y).sum() / length) if float(length) > 0 else 1.0
    if abs(cosine) > _NEARLY_PARALLEL:
        return ((1 - t) * x + t * y).to(a.dtype)
    theta = math.acos(max(-1.0, min(1.0, cosine)))
    s = math.sin(theta)
    return (math.sin((1 - t) * theta) / s * x + math.sin(t * theta) / s * y).to(a.dtype)


def task_arithmetic(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], scale: float = 1.0) -> Tensor:
    """base + λ Σ w_i (x_i - base) (Ilharco et al. 2023, section 2). A negative weight forgets."""
    return base + scale * _weighted([x - base for x in tensors], weights)


def ties(
    base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], density: float = 0.2, scale: float = 1.0,
    normalize: bool = True,
) -> Tensor:  # fmt: skip
    """Trim, elect sign, merge (Yadav et al. 2023, algorithm 1): of each task vector the `density` largest entries stay,
    each entry's sign is that of the sum, and those that have it are averaged.

    Trimmed tensor by tensor as mergekit does, not over the whole model. With weights other than 1 the mean is theirs.
    """
    return base + scale * _elected([trim(x - base, density) for x in tensors], weights, normalize)


def dare(
    base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], density: float = 0.5, scale: float = 1.0,
    *, elect: bool = False, generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Drop and rescale (Yu et al. 2024, eq. 2 and 3): of each task vector a random 1 - density goes to 0 and the rest
    is divided by density, which keeps the expectation. elect: then TIES' signs, without its mean over the models."""
    _check_density(density)
    deltas = []
    for x in tensors:
        keep = torch.bernoulli(torch.full_like(x, density), generator=generator)
        deltas.append((x - base) * keep / density)
    return base + scale * (_elected(deltas, weights, normalize=False) if elect else _weighted(deltas, weights))


def trim(delta: Tensor, density: float) -> Tensor:
    """The int(density · n) largest entries, at least one; the others 0."""
    _check_density(density)
    count = max(1, int(density * delta.numel()))
    kept = delta.abs().flatten().topk(count).indices
    return torch.zeros_like(delta).flatten().index_copy_(0, kept, delta.flatten()[kept]).view_as(delta)


def _elected(deltas: Sequence[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    weighted = torch.stack([w * delta for w, delta in zip(weights, deltas, strict=True)])
    sign = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agrees = weighted.sign() == sign
    mixed = (weighted * agrees).sum(0)
    if not normalize:
        return mixed
    shape = (-1, *[1] * (weighted.ndim - 1))
    total = (torch.tensor(list(weights), dtype=mixed.dtype, device=mixed.device).view(shape) * agrees).sum(0)
    return mixed / torch.where(total == 0, torch.ones_like(total), total)


def _weighted(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(tensors[0])
    for weight, tensor in zip(weights, tensors, strict=True):
        total += weight * tensor
    return total


def _check_density(density: float) -> None:
    if not 0 < density <= 1:
        raise UsageError("a density lies in (0, 1]", field="density", value=density, remedy="0.2 of TIES, 0.5 of DARE")
