"""How often each term occurs in the passages: what makes a word worth asking for, and what a question leans on."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from dacheng.text.analyzer import analyze

if TYPE_CHECKING:
    from dacheng.rag.passages import Passage
    from dacheng.rag.store import PassageStore

MAX_COUNTED = 20_000  # passages
_ENDINGS = ("ing", "ed", "es", "s", "ly")


class Rarity:
    """Document frequencies of folded terms over passages, each passage's heading included."""

    def __init__(self, frequencies: Counter[str], passages: int) -> None:
        self.frequencies, self.passages = frequencies, passages

    @classmethod
    def of(cls, passages: Iterable[Passage]) -> Rarity:
        counted: Counter[str] = Counter()
        n = 0
        for passage in passages:
            counted.update(passage_terms(passage))
            n += 1
        return cls(counted, n)

    @classmethod
    def of_store(cls, store: PassageStore, limit: int = MAX_COUNTED) -> Rarity:
        """Of every passage, or every n-th where there are more than `limit`: rarity needs no more, and a hundred
        thousand passages would take half a minute."""
        step = max(1, -(-len(store) // limit))
        return cls.of(itertools.islice(store.all(), 0, None, step))

    def idf(self, term: str) -> float:
        """Inverse document frequency in nats, as BM25 has it (Robertson and Zaragoza 2009, section 3.4.1): largest for
        a term that occurs nowhere, never below 0."""
        n = self.frequencies[fold(term)]
        return math.log(1 + (self.passages - n + 0.5) / (n + 0.5))

    @property
    def largest_idf(self) -> float:
        return math.log(1 + (self.passages + 0.5) / 0.5)

    def __contains__(self, term: str) -> bool:
        return self.frequencies[fold(term)] > 0


def fold(term: str) -> str:
    """Without the endings that English verbs and plurals take, so that "deletes" is found in "Delete", "splitting" in
    "split": coarse, and only for comparing. (A full stemmer, Porter 1980, tells no more here.)"""
    for ending in _ENDINGS:
        if len(term) - len(ending) >= 4 and term.endswith(ending):
            term = term.removesuffix(ending)
            if len(term) >= 5 and term[-1] == term[-2] and term[-1] not in "aeiouls":
                term = term[:-1]
            break
    return term.removesuffix("e") if len(term) >= 4 else term


def folded_terms(terms: Iterable[str]) -> list[str]:
    """Distinct, in order."""
    return list(dict.fromkeys(map(fold, terms)))


def passage_terms(passage: Passage) -> frozenset[str]:
    """The distinct folded terms of a passage and its heading."""
    return _terms(passage.heading, passage.text)


@lru_cache(4096)
def _terms(heading: str, text: str) -> frozenset[str]:
    return frozenset(map(fold, analyze(f"{heading}\n{text}")))
