"""How far people agree beyond what chance would give: Cohen's kappa for two, Krippendorff's alpha for any number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from dacheng.errors import UsageError
from dacheng.evaluate.intervals import Interval

Value = TypeVar("Value", bound=Hashable)
Level = Literal["nominal", "ordinal", "interval"]


def cohen_kappa(first: Sequence[Value], second: Sequence[Value]) -> float | None:
    """(p_o - p_e) / (1 - p_e) of two annotators on the same items (Cohen 1960, eq. 1): 1 is full agreement, 0 what
    chance gives. None where it is not defined: no item, or both always say one and the same.

    Raises UsageError where the lengths differ."""
    if len(first) != len(second):
        raise UsageError("one label of each for each item", field="second", value=[len(first), len(second)],
                         remedy="leave out what only one has labelled")  # fmt: skip
    n = len(first)
    if not n:
        return None
    counts_a, counts_b = Counter(first), Counter(second)
    observed = sum(a == b for a, b in zip(first, second)) / n
    expected = sum(counts_a[c] * counts_b[c] for c in counts_a) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(units: Sequence[Sequence[float]], level: Level = "nominal") -> float | None:
    """1 - D_o / D_e over units, each with the values that its annotators gave (Krippendorff 2011, "Computing
    Krippendorff's alpha-reliability", sections C to E). Missing labels are just not there; a unit with one value counts
    for nothing. None where it is not defined: no unit with two values, or one value everywhere.
    """
    paired = [Counter(unit) for unit in units if len(unit) > 1]
    totals: Counter[float] = Counter()
    for unit in paired:
        totals.update(unit)
    n = sum(totals.values())
    if len(totals) < 2:
        return None
    values = sorted(totals)
    distance = _DISTANCES[level](values, totals)
    observed = 0.0
    for unit in paired:
        m = sum(unit.values())
        there = [v for v in values if v in unit]
        observed += sum(unit[c] * unit[k] * distance(c, k) for c in there for k in there) / (m - 1)
    expected = sum(totals[c] * totals[k] * distance(c, k) for c in values for k in values) / (n - 1)
    return 1 - observed / expected


def alpha_interval(
    units: Sequence[Sequence[float]], level: Level = "nominal", *, draws: int = 500, seed: int = 0
) -> Interval | None:
    """Alpha with a 95% percentile bootstrap over the units; None where it is not defined, or in few of the draws."""
    estimate = krippendorff_alpha(units, level)
    kept = [unit for unit in units if len(unit) > 1]
    if estimate is None or len(kept) < 2:
        return None
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        picked = generator.integers(0, len(kept), len(kept))
        drawn = krippendorff_alpha([kept[i] for i in picked], level)
        if drawn is not None:
            found.append(drawn)
    if len(found) < draws / 2:
        return None
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(estimate, float(low), float(high), 0.95, len(kept))


# --- squared distances, section D -------------------------------------------------------------------------------------
Distance = Callable[[float, float], float]


def _nominal(values: Sequence[float], totals: Mapping[float, int]) -> Distance:
    return lambda c, k: float(c != k)


def _ordinal(values: Sequence[float], totals: Mapping[float, int]) -> Distance:
    def distance(c: float, k: float) -> float:
        low, high = min(c, k), max(c, k)
        between = sum(totals[v] for v in values if low <= v <= high)
        return (between - (totals[c] + totals[k]) / 2) ** 2

    return distance


def _interval(values: Sequence[float], totals: Mapping[float, int]) -> Distance:
    return lambda c, k: (c - k) ** 2


_DISTANCES: dict[str, Callable[[Sequence[float], Mapping[float, int]], Distance]] = {
    "nominal": _nominal, "ordinal": _ordinal, "interval": _interval,
}  # fmt: skip
