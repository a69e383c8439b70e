"""Which questions are nearly the same: the share of terms that two have in common."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from dacheng.rag.questions.question import Question
from dacheng.text.analyzer import analyze_query

NEAR = 0.7
"""Jaccard similarity of the terms (stop words left out) from which two questions count as one."""


def without_near(questions: Iterable[Question], others: Sequence[Question], near: float = NEAR) -> list[Question]:
    """Those of `questions` that resemble none of `others`: |A ∩ B| / |A ∪ B| < near for their terms.

    Exact, by an index of terms: questions are few and short, so the sketch of MinHash (Broder 1997) would save nothing.
    """
    index: defaultdict[str, list[int]] = defaultdict(list)
    sizes = []
    for number, other in enumerate(others):
        terms = set(analyze_query(other.question))
        sizes.append(len(terms))
        for term in terms:
            index[term].append(number)
    kept = []
    for question in questions:
        terms = set(analyze_query(question.question))
        common: Counter[int] = Counter(number for term in terms for number in index.get(term, ()))
        if all(n / (len(terms) + sizes[number] - n) < near for number, n in common.items()):
            kept.append(question)
    return kept
