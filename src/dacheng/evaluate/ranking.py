"""How good a ranking is: nDCG, recall, reciprocal rank and average precision, equal to trec_eval's.

A ranking is ids, best first. Relevance judges some of them with grades: above 0 is relevant, what is not judged is not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from dacheng.errors import UsageError
from dacheng.evaluate.intervals import Interval, bootstrap_mean

Id = TypeVar("Id", str, int)
MEASURES = ("ndcg@10", "recall@5", "mrr", "map")
_MEASURE = re.compile(r"(ndcg|recall|mrr|map)(?:@([1-9][0-9]{0,6}))?")


def by_score(scores: Mapping[str, float]) -> list[str]:
    """Ids by score, as trec_eval sorts them: highest first in single precision, of equals the later id."""
    return sorted(scores, key=lambda number: (np.float32(scores[number]), number), reverse=True)


def ndcg(ranking: Sequence[Id], relevance: Mapping[Id, int], k: int | None = None) -> float:
    """Σ grade / log2(rank + 1) of the first k, over that of the best order (Järvelin & Kekäläinen 2002, with the
    discount of trec_eval's ndcg_cut). 0 where nothing is relevant."""
    gains = [max(relevance.get(number, 0), 0) for number in _distinct(ranking)[:k]]
    ideal = sorted((grade for grade in relevance.values() if grade > 0), reverse=True)[:k]
    return _discounted(gains) / _discounted(ideal) if ideal else 0.0


def recall(ranking: Sequence[Id], relevance: Mapping[Id, int], k: int | None = None) -> float:
    """Share of what is relevant that is among the first k. 0 where nothing is."""
    relevant = _relevant(relevance)
    return len(relevant.intersection(_distinct(ranking)[:k])) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranking: Sequence[Id], relevance: Mapping[Id, int], k: int | None = None) -> float:
    """1 / rank of the first relevant one among the first k; 0 where there is none."""
    relevant = _relevant(relevance)
    return next((1 / rank for rank, number in enumerate(_distinct(ranking)[:k], 1) if number in relevant), 0.0)


def average_precision(ranking: Sequence[Id], relevance: Mapping[Id, int], k: int | None = None) -> float:
    """Mean over what is relevant of the precision at its rank, 0 for what is not among the first k. 0 where nothing is
    relevant."""
    relevant, found, total = _relevant(relevance), 0, 0.0
    for rank, number in enumerate(_distinct(ranking)[:k], 1):
        if number in relevant:
            found += 1
            total += found / rank
    return total / len(relevant) if relevant else 0.0


_FUNCTIONS = {"ndcg": ndcg, "recall": recall, "mrr": reciprocal_rank, "map": average_precision}


def score_rankings(
    rankings: Mapping[str, Sequence[Id]],
    relevance: Mapping[str, Mapping[Id, int]],
    measures: Sequence[str] = MEASURES,
) -> dict[str, list[float]]:
    """Each measure's value for each query of `relevance`, in its order; a query without ranking has 0 throughout.

    measures: ndcg, recall, mrr or map, "@k" behind it for the first k only. Raises UsageError for another measure, for
    a ranking of a query that is not judged, and for an id that a ranking holds twice.
    """
    for query in rankings:
        if query not in relevance:
            raise UsageError("a ranking for a query that nothing is known about", field="query", value=query,
                             remedy="give its relevance, or leave it out")  # fmt: skip
    found: dict[str, list[float]] = {}
    for measure in measures:
        parts = _MEASURE.fullmatch(measure)
        if parts is None:
            raise UsageError("unknown measure", field="measures", value=measure,
                             remedy=", ".join(_FUNCTIONS) + ", each with @k or without")  # fmt: skip
        function, k = _FUNCTIONS[parts[1]], int(parts[2]) if parts[2] else None
        found[measure] = [function(rankings.get(query, ()), judged, k) for query, judged in relevance.items()]
    return found


def summarise(scores: Mapping[str, Sequence[float]], *, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """Mean over queries of each measure, with its interval (queries resampled). UsageError below two queries."""
    return {name: bootstrap_mean(values, resamples=resamples, seed=seed) for name, values in scores.items()}


def _relevant(relevance: Mapping[Id, int]) -> set[Id]:
    return {number for number, grade in relevance.items() if grade > 0}


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1) if gain)


def _distinct(ranking: Sequence[Id]) -> Sequence[Id]:
    if len(set(ranking)) != len(ranking):
        twice = next(number for i, number in enumerate(ranking) if number in ranking[:i])
        raise UsageError("a ranking holds an id twice", field="ranking", value=twice, remedy="keep the first")
    return ranking
