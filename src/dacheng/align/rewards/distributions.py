"""How rewards are spread: what a mean hides (two heaps, a ceiling, samples that nothing could be said of)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dacheng.align.rewards.base import Judged

BINS = 20


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of one reward over samples. n: values; silent: samples of which it could not say. std: of a sample (n - 1).
    quantiles: 0, 5, 25, 50, 75, 95, 100 %. histogram: counts of 20 equal bins from the least to the greatest value.
    length_correlation: Pearson's with the lengths given, None without lengths or where either does not vary."""

    n: int
    silent: int
    mean: float
    std: float
    quantiles: tuple[float, ...]
    histogram: tuple[int, ...]
    length_correlation: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe_rewards(judged: Sequence[Judged], lengths: Sequence[int] | None = None) -> dict[str, Distribution]:
    """ "reward" (the total) and each part by name -> its distribution. A reward that was silent about every sample is
    not among them: what was judged does not name it."""
    columns: dict[str, list[float | None]] = {"reward": [one.total for one in judged]}
    for name in dict.fromkeys(name for one in judged for name in one.parts):
        columns[name] = [one.parts.get(name) for one in judged]
    return {name: _distribution(values, lengths) for name, values in columns.items()}


def _distribution(values: Sequence[float | None], lengths: Sequence[int] | None) -> Distribution:
    said = sorted(value for value in values if value is not None)
    silent = len(values) - len(said)
    if not said:
        return Distribution(0, silent, math.nan, math.nan, (), ())
    low, width = said[0], (said[-1] - said[0]) / BINS
    histogram = [0] * BINS
    for value in said:
        histogram[min(BINS - 1, int((value - low) / width)) if width > 0 else 0] += 1
    spread = statistics.stdev(said) if len(said) > 1 else 0.0
    quantiles = tuple(_quantile(said, share) for share in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1))
    pairs = [(v, length) for v, length in zip(values, lengths, strict=True) if v is not None] if lengths else []
    return Distribution(len(said), silent, statistics.fmean(said), spread, quantiles, tuple(histogram), _pearson(pairs))


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between neighbours, as numpy's default."""
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def _pearson(pairs: Sequence[tuple[float, float]]) -> float | None:
    if len(pairs) < 3:
        return None
    try:
        return statistics.correlation(*zip(*pairs))
    except statistics.StatisticsError:  # one of them does not vary
        return None
