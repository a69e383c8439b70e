"""Linear maps as products of two thin ones, chosen by what they make of real inputs (activation-aware SVD).

SVD-LLM (Wang et al. 2024, arXiv 2403.07378, section 3.1): with S Sᵀ = E x xᵀ, truncating the SVD of W S instead of W
makes the loss on the inputs exactly the sum of the squares of the singular values that go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dacheng.compress.hessian import DAMP, TRIES, check_finite
from dacheng.compress.prune.shrink import check_plain
from dacheng.compress.walk import LayerWalk
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.ops.low_rank import LowRankTensor

Method = Literal["svd", "whitened"]
METHODS = ("svd", "whitened")


@dataclass(slots=True)
class Factorised:
    """weights: by the model's names ("blocks.0.mlp.up.weight"), for `save_model(packed=…)`. kept: numbers in them over
    those of the matrices they stand for. errors: ‖(W - BA) x‖² / ‖W x‖² of each on the calibration text."""

    weights: dict[str, LowRankTensor] = field(default_factory=dict)
    kept: float = 1.0
    errors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def factorise(
    model: Decoder, batches: Iterable[Any], ratio: float = 0.8, method: Method = "whitened", *,
    progress: Callable[[int, int], None] | None = None,
) -> Factorised:  # fmt: skip
    """Every linear map of the blocks as two with `ratio` of its numbers; the model's weights become their products, in
    place, so that later blocks see what they will get. Raises UsageError for a ratio outside of (0, 1)."""
    if not 0 < ratio < 1 or method not in METHODS:
        raise UsageError("a share of the numbers lies in (0, 1)" if method in METHODS else "no such method",
                         field="ratio" if method in METHODS else "method", value=[ratio, method],
                         remedy="ratio 0.8, method whitened or svd")  # fmt: skip
    check_plain(model)
    found, before, after = Factorised(), 0, 0
    walk = LayerWalk(model, batches, purpose="low rank")
    for layer in walk:
        if layer.module is None:
            continue
        stats = layer.collect({"hessian"})
        for name, module in layer.modules.items():
            weight: Tensor = module.weight  # type: ignore[assignment]
            hessian = stats[name].hessian if name in stats else None
            rank = int(ratio * weight.numel() / sum(weight.shape))
            before += weight.numel()
            if hessian is None or rank < 1 or rank >= min(weight.shape):
                found.notes.append(f"{name} is left as it is: rank {rank} of {min(weight.shape)}")
                after += weight.numel()
                continue
            a, b, note = low_rank_for(weight, hessian, rank, method)
            stored = LowRankTensor(a.to(weight.dtype), b.to(weight.dtype))
            product = stored.dequantize()
            found.errors[name] = _error(weight, product, hessian)
            found.notes += [f"{name}: {note}"] if note else []
            found.weights[f"{name}.weight"] = stored
            weight.copy_(product)
            after += stored.a.numel() + stored.b.numel()
        if progress is not None:
            progress(layer.index + 1, len(walk) - 1)
    found.kept = after / max(1, before)
    return found


def low_rank_for(weight: Tensor, hessian: Tensor, rank: int, method: Method) -> tuple[Tensor, Tensor, str]:
    """weight (out, in), hessian (in, in) = c · Σ x xᵀ -> A (r, in), B (out, r), and what did not go as planned."""
    note, w = "", weight.double()
    lower = _root(hessian) if method == "whitened" else None
    if method == "whitened" and lower is None:
        note = "singular inputs: the plain SVD was taken"
    scaled = w if lower is None else w @ lower
    u, s, vt = torch.linalg.svd(scaled, full_matrices=False)
    root = s[:rank].sqrt()
    a, b = root.unsqueeze(1) * vt[:rank], u[:, :rank] * root
    if lower is not None:
        a = torch.linalg.solve_triangular(lower, a, upper=False, left=False)  # A S⁻¹
    return a.float(), b.float(), note


def _root(hessian: Tensor) -> Tensor | None:
    """Lower S with S Sᵀ = H, damped as little as it takes."""
    check_finite(hessian)
    h = hessian.double()
    mean = float(h.diagonal().mean())
    for raised in range(TRIES + 1):
        damped = h.clone()
        damped.diagonal().add_(mean * DAMP * 1e-4 * 10**raised)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed and mean > 0:
            return lower
    return None


def _error(weight: Tensor, product: Tensor, hessian: Tensor) -> float:
    def energy(m: Tensor) -> float:
        return float(((m @ hessian.double()) * m).sum())

    return energy(weight.double() - product.double()) / max(energy(weight.double()), 1e-30)
