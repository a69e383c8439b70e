"""What a policy makes of held-out pairs: the same figures for every loss, so that losses can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dacheng.align.preferences.reference import row_logps
from dacheng.data.pairs import PairRows, Row
from dacheng.data.text_rows import length_batches
from dacheng.evaluate.intervals import Interval, bootstrap_mean, wilson

BATCH_TOKENS = 1024


def logps_of(model: nn.Module, pairs: Sequence[PairRows], pad_id: int = 0) -> Tensor:
    """(N, 2) float32: sums of log-probabilities of the chosen and the rejected replies."""
    rows: list[Row] = [row for pair in pairs for row in (pair.first, pair.second)]
    found = torch.zeros(len(rows))
    for numbers in length_batches([len(row.ids) for row in rows], BATCH_TOKENS):
        found[numbers] = row_logps(model, [rows[i] for i in numbers], pad_id)
    return found.view(-1, 2)


def pair_metrics(logps: Tensor, reference: Tensor, pairs: Sequence[PairRows], beta: float = 0.1) -> dict[str, float]:
    """Means over pairs, under TRL's names. logps, reference: (N, 2) sums.

    rewards/chosen, rewards/rejected: beta · log π/π_ref. rewards/accuracies: share of pairs whose chosen reply has
    gained more than the rejected one; a tie counts half, so that the reference itself has .5. rewards/margins: mean
    difference. logps/chosen, logps/rejected: the sums. logps/accuracies: share of pairs whose chosen reply is likelier
    a token, which needs no reference.
    """
    tokens = torch.tensor([[int(row.learnt[1:].sum()) for row in (p.first, p.second)] for p in pairs])
    rewards = beta * (logps - reference)
    chosen, rejected = rewards.unbind(1)
    means = logps / tokens
    right = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
    return {
        "rewards/chosen": float(chosen.mean()),
        "rewards/rejected": float(rejected.mean()),
        "rewards/accuracies": float(right.mean()),
        "rewards/margins": float((chosen - rejected).mean()),
        "logps/chosen": float(logps[:, 0].mean()),
        "logps/rejected": float(logps[:, 1].mean()),
        "logps/accuracies": float((means[:, 0] > means[:, 1]).float().mean()),
    }


def accuracy(first: Tensor, second: Tensor) -> Interval:
    """Share of pairs (N,) whose first score is the higher one, with Wilson's interval. Ties are not right."""
    return wilson(int((first > second).sum()), len(first))


def shorter_or_longer(train: Sequence[PairRows], held_out: Sequence[PairRows]) -> dict[str, Any]:
    """The baseline that looks at length alone: it prefers what was preferred in training, the longer or the shorter
    reply, in tokens; equal lengths are half right. A reward model that is not above it may have learnt just that."""
    gaps = _gaps(train)
    longer = float((gaps > 0).float().mean() + 0.5 * (gaps == 0).float().mean())
    prefers = "longer" if longer >= 0.5 else "shorter"
    gap = _gaps(held_out) * (1 if prefers == "longer" else -1)
    right = (gap > 0).float() + 0.5 * (gap == 0).float()
    interval = bootstrap_mean(right.numpy()) if len(right) > 1 else None
    return {
        "prefers": prefers,
        "accuracy": float(right.mean()),
        "interval": None if interval is None else [interval.low, interval.high],
        "pairs": len(right),
    }


def _gaps(pairs: Sequence[PairRows]) -> Tensor:
    return torch.tensor([int(p.first.learnt.sum()) - int(p.second.learnt.sum()) for p in pairs])
