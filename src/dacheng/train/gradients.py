"""The gradient of one update: terms summed over micro-batches and ranks, each divided by its global count."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dacheng.errors import DachengError, UsageError
from dacheng.objectives.base import Objective, StepContext, Term
from dacheng.train import collectives
from dacheng.train.precision import Precision


@dataclass
class Totals:
    """What one update saw over all micro-batches and ranks. terms, metrics: quotients; loss: Σ weight · term."""

    loss: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)


def accumulate(
    model: nn.Module,
    objective: Objective,
    micro_batches: Sequence[Any],
    ctx: StepContext,
    precision: Precision,
    parameters: Sequence[nn.Parameter],
) -> Totals:
    """Leaves in each .grad the gradient of Σ weight · sum / global count, summed over micro-batches and ranks.

    Eight micro-batches of one row and one of eight rows give the same gradient, whatever is masked where. A term whose
    count is zero contributes zero: its sum is not even looked at. A parameter that no term reaches keeps .grad None.
    """
    refuse_coupled(objective, len(micro_batches))
    local = [check_counts(objective.counts(batch)) for batch in micro_batches]
    totals = Totals(counts=sum_over_ranks(local))
    sums = _Sums()
    for batch, counts in zip(micro_batches, local):
        with precision.autocast():
            terms, metrics = objective(model, batch, ctx)
        loss = micro_loss(terms, counts, totals.counts)
        if loss is not None:
            scale = precision.scaler.scale if precision.scaler else 1.0
            (loss * scale).backward()
        sums.add(terms, counts, metrics)
    collectives.sum_gradients(parameters)
    grads = [p.grad for p in parameters if p.grad is not None]
    if precision.scaler and grads:
        torch._foreach_mul_(grads, 1.0 / precision.scaler.scale)
    sums.reduce_into(totals)
    return totals


def micro_loss(terms: dict[str, Term], counts: dict[str, float], totals: dict[str, float]) -> Tensor | None:
    """The part of the step's loss that one micro-batch adds, or None where nothing in it counts.

    Raises UsageError for a term that `counts` did not announce: what to divide it by would be a guess.
    """
    loss: Tensor | None = None
    for name, term in terms.items():
        if name not in totals:
            raise UsageError(
                "an objective returned a term that it did not count",
                field=name,
                value=sorted(totals),
                remedy="return a count of that name from counts(batch)",
            )
        if counts.get(name, 0.0) > 0 and term.sum.requires_grad:
            part = term.sum * (term.weight / totals[name])
            loss = part if loss is None else loss + part
    return loss


def refuse_coupled(objective: Objective, micro_batches: int) -> None:
    """Raises UsageError for an objective whose elements see their whole batch, when the batch is in several pieces."""
    pieces = micro_batches * collectives.world_size()
    if pieces > 1 and objective.couples_batch and not getattr(objective, "caches_gradients", False):
        raise UsageError(
            f"{type(objective).__name__} compares the elements of a batch with each other: in {pieces} pieces its loss "
            "would be another one",
            field="micro_batches",
            value=pieces,
            remedy="use one micro-batch on one rank, or an objective that caches gradients",
        )


def check_counts(counts: dict[str, float]) -> dict[str, float]:
    """Returns them as floats. Raises UsageError for one that is negative or not finite."""
    for name, count in counts.items():
        if not (math.isfinite(count) and count >= 0):
            raise UsageError(
                "a count is zero or more", field=name, value=count, remedy="count elements, from data only"
            )
    return {name: float(count) for name, count in counts.items()}


def sum_over_ranks(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Adds up dictionaries of numbers, first over this rank's `parts`, then over the ranks in their order."""
    return _added(collectives.gather(_added(parts)))


def grad_norm(parameters: Sequence[nn.Parameter]) -> float:
    """The global 2-norm of the gradients."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0


def clip(parameters: Sequence[nn.Parameter], norm: float, limit: float) -> None:
    """Scales the gradients, whose global norm is `norm`, down to `limit` (Pascanu et al. 2013, algorithm 1)."""
    if norm > limit:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], limit / norm)


def non_finite_names(named: Iterable[tuple[str, nn.Parameter]], limit: int = 3) -> list[str]:
    """The first parameters whose gradient has a NaN or an infinity."""
    found = (name for name, p in named if p.grad is not None and not bool(torch.isfinite(p.grad).all()))
    return [name for _, name in zip(range(limit), found)]


class _Sums:
    """Running sums of one update, kept as tensors so that an accelerator is not waited for in every micro-batch."""

    def __init__(self) -> None:
        self.terms: dict[str, list[Tensor]] = {}
        self.weights: dict[str, float] = {}
        self.metrics: dict[str, list[tuple[float | Tensor, float]]] = {}

    def add(self, terms: dict[str, Term], counts: dict[str, float], metrics: dict[str, Any]) -> None:
        for name, term in terms.items():
            if self.weights.setdefault(name, term.weight) != term.weight:
                raise DachengError(
                    "the weight of a term changed within a step",
                    field=name,
                    value=term.weight,
                    remedy="make it constant",
                )
            if counts.get(name, 0.0) > 0:
                self.terms.setdefault(name, []).append(term.sum.detach())
        for name, (total, count) in metrics.items():
            value = total.detach() if isinstance(total, Tensor) else total
            self.metrics.setdefault(name, []).append((value, float(count)))

    def reduce_into(self, totals: Totals) -> None:
        """Adds up over the ranks, in float64, and divides by the global counts."""
        ranks = collectives.gather(
            {
                "terms": {name: math.fsum(float(part) for part in parts) for name, parts in self.terms.items()},
                "weights": self.weights,
                "sums": {name: sum(float(total) for total, _ in parts) for name, parts in self.metrics.items()},
                "counts": {name: sum(count for _, count in parts) for name, parts in self.metrics.items()},
            }
        )
        weights = {name: weight for rank in ranks for name, weight in rank["weights"].items()}
        sums, counts = _added(rank["sums"] for rank in ranks), _added(rank["counts"] for rank in ranks)
        totals.terms = {
            name: total / totals.counts[name] for name, total in _added(rank["terms"] for rank in ranks).items()
        }
        totals.loss = math.fsum(weights[name] * value for name, value in totals.terms.items())
        totals.metrics = {name: total / counts[name] for name, total in sums.items() if counts[name] > 0}


def _added(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total
