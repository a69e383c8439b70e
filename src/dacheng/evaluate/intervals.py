"""How sure a figure is: percentile bootstrap over documents, paired differences, and Wilson's interval for a share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dacheng.errors import UsageError

Floats = NDArray[np.float64]
_CHUNK = 1 << 22  # draws held at once


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and where it may lie: `estimate` on all n units, [low, high] at `level` confidence."""

    estimate: float
    low: float
    high: float
    level: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def bootstrap_ratio(
    numerators: ArrayLike, denominators: ArrayLike, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Σ numerators / Σ denominators over units (bits and bytes of documents), resampling whole units.

    Percentile bootstrap (Efron 1979): units are what is independent, tokens of one document are not. It is too narrow
    below some twenty units. numerators, denominators (n,); every denominator > 0. UsageError below two units.
    """
    top, bottom = _units(numerators, denominators)
    ratios = _resampled([top, bottom], resamples, seed)
    return _percentiles(float(top.sum() / bottom.sum()), ratios[0] / ratios[1], level, len(top))


def bootstrap_mean(values: ArrayLike, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Interval:
    """Mean of values (n,), resampling them: percentile bootstrap. UsageError below two values."""
    values = np.asarray(values, dtype=np.float64)
    return bootstrap_ratio(values, np.ones_like(values), level=level, resamples=resamples, seed=seed)


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    denominators: ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Ratio of `first` minus ratio of `second` over the same units (None: mean difference), both resampled together.

    Far narrower than two intervals side by side, since what makes a document hard is hard for both. Below zero: `first`
    is lower. first, second, denominators (n,). UsageError where the lengths differ or there are fewer than two units.
    """
    a = np.asarray(first, dtype=np.float64)
    top_a, bottom = _units(a, np.ones_like(a) if denominators is None else denominators)
    top_b, _ = _units(second, bottom)
    sums = _resampled([top_a - top_b, bottom], resamples, seed)
    return _percentiles(float((top_a - top_b).sum() / bottom.sum()), sums[0] / sums[1], level, len(bottom))


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Share successes / n with the score interval (Wilson 1927, eq. 1): sound for small n and for shares near 0 and 1.

    Raises UsageError unless 0 <= successes <= n and n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise UsageError("not a share", field="successes", value=[successes, n], remedy="0 <= successes <= n, n >= 1")
    z = NormalDist().inv_cdf(0.5 + _checked_level(level) / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # by the formula the ends are exactly 0 and 1 there; rounding would leave 1e-17
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return Interval(share, low, high, level, n)


def _units(numerators: ArrayLike, denominators: ArrayLike) -> tuple[Floats, Floats]:
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if top.shape != bottom.shape or top.ndim != 1 or len(top) < 2:
        raise UsageError(
            "an interval needs two units or more, each with a numerator and a denominator",
            field="units",
            value=[top.shape, bottom.shape],
            remedy="evaluate more documents",
        )
    if not (bottom > 0).all():
        raise UsageError("a denominator is not positive", field="denominators", value=float(bottom.min()))
    return top, bottom


def _resampled(arrays: Sequence[Floats], resamples: int, seed: int) -> list[Floats]:
    """Sums of each array over the same `resamples` draws of n units with replacement: arrays of (resamples,)."""
    if resamples < 1:
        raise UsageError("must be at least 1", field="resamples", value=resamples, remedy="1000 is customary")
    n = len(arrays[0])
    generator = np.random.default_rng(seed)
    sums: list[list[Floats]] = [[] for _ in arrays]
    rows = max(1, _CHUNK // n)
    for start in range(0, resamples, rows):
        drawn = generator.integers(0, n, size=(min(rows, resamples - start), n))
        for array, parts in zip(arrays, sums, strict=True):
            parts.append(array[drawn].sum(axis=1))
    return [np.concatenate(parts) for parts in sums]


def _percentiles(estimate: float, draws: Floats, level: float, n: int) -> Interval:
    tail = (1 - _checked_level(level)) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high), level, n)


def _checked_level(level: float) -> float:
    if not 0 < level < 1:
        raise UsageError("a confidence level lies between 0 and 1", field="level", value=level, remedy="0.95")
    return level
