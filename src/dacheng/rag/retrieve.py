"""Retrieval: the passages nearest to a question, by BM25 over terms, by cosine over vectors, or by both ranks."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dacheng.errors import UsageError
from dacheng.rag.passages import Passage
from dacheng.rag.scripts import language_of
from dacheng.rag.store import PassageStore
from dacheng.text.analyzer import analyze_query

if TYPE_CHECKING:
    from dacheng.rag.dense import Encoder
    from dacheng.rag.vectors import VectorIndex

RetrievalMode = Literal["hybrid", "bm25", "dense"]
HEADING_WEIGHT = 3.0  # of a term in the heading, against 1 in the text
_MAX_TERMS = 256  # of one question
NO_ENCODER = "use bm25, or name an encoder's directory in DACHENG_ENCODER, then dacheng rag index … --vectors"
_DEPTH = 100  # of each ranking that hybrid joins
DENSE_WEIGHT, SHARPNESS = 1.5, 3.0  # of the cosine in hybrid; how soon words give way (docs/lab-notes/retrieval.md)


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found. `score` is what the list is sorted by: BM25, the cosine, or what joins them; the
    others are None where that ranking did not hold the passage."""

    passage: Passage
    score: float
    bm25: float | None = None
    cosine: float | None = None
    rank_bm25: int | None = None
    rank_dense: int | None = None


class Retriever:
    """Searches a store; safe from several threads. encoder: makes vectors of questions, whose passages' vectors are in
    the store.

    Hybrid joins the best hundred of both rankings by a weighted sum of scores (convex combination, Bruch et al. 2023),
    in which words count as much as the best passage has of what the question's terms are worth: where the passages have
    the question's words, words decide; where they have few of them, meaning does. With `k_rrf`, by
    reciprocal ranks instead (Cormack et al. 2009): sum of 1 / (k_rrf + rank), which is worse than BM25 alone where one
    ranking knows little, as an English encoder does of Chinese (docs/lab-notes/retrieval.md).
    """

    def __init__(self, store: PassageStore, encoder: Encoder | None = None, *, k_rrf: int | None = None) -> None:
        self.store, self.encoder, self.k_rrf = store, encoder, k_rrf
        self._guard = threading.Lock()
        self._vectors: tuple[int, VectorIndex] | None = None
        self._idf: tuple[int, int, dict[str, float]] = (-1, 0, {})

    @property
    def mode(self) -> RetrievalMode:
        """What "hybrid" comes to here: "bm25" where there is no encoder."""
        return "hybrid" if self.encoder is not None else "bm25"

    def search(self, query: str, k: int = 5, mode: RetrievalMode = "hybrid") -> list[Hit]:
        """The best k passages, best first; fewer where fewer match. A question without terms finds nothing by BM25.

        Raises UsageError for mode="dense" without an encoder.
        """
        if mode == "dense" and self.encoder is None:
            raise UsageError("searching by vectors needs an encoder", field="mode", value=mode, remedy=NO_ENCODER)
        if k < 1:
            return []
        if mode == "bm25" or self.encoder is None or (mode == "hybrid" and not self._reads(query)):
            ranked = self._bm25(query, k)
            return self._hits(ranked, {}, [(number, score) for number, score in ranked])
        if mode == "dense":
            nearest, cosines = self._dense(query, k)
            return self._hits([], cosines, nearest)
        depth = max(k, _DEPTH)
        terms = self._bm25(query, depth)
        nearest, cosines = self._dense(query, depth, [number for number, _ in terms])
        if self.k_rrf is None:
            scores = weighted_scores(dict(terms), cosines, self._worth(query))
        else:
            scores = reciprocal_ranks((terms, nearest), self.k_rrf)
        best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]
        return self._hits(terms, cosines, best, nearest)

    def _hits(
        self,
        terms: list[tuple[int, float]],
        cosines: dict[int, float],
        best: list[tuple[int, float]],
        nearest: list[tuple[int, float]] | None = None,
    ) -> list[Hit]:
        passages = self.store.many([number for number, _ in best])
        bm25 = {number: (score, rank) for rank, (number, score) in enumerate(terms, 1)}
        if nearest is None:
            nearest = best if cosines else []
        dense = {number: rank for rank, (number, _) in enumerate(nearest, 1)}
        return [
            Hit(
                passages[number],
                score,
                bm25[number][0] if number in bm25 else None,
                cosines.get(number),
                bm25[number][1] if number in bm25 else None,
                dense.get(number),
            )
            for number, score in best
            if number in passages  # it may have been removed in the meantime
        ]

    def _reads(self, query: str) -> bool:
        """Whether the encoder's vectors of such a question mean something: those of an English one of Chinese do
        not, and words alone find more (docs/lab-notes/retrieval.md)."""
        from dacheng.rag.dense import ENGLISH

        assert self.encoder is not None
        return not self.encoder.name.startswith(ENGLISH) or query.isascii() or language_of(query) == "en"

    def _bm25(self, query: str, k: int) -> list[tuple[int, float]]:
        """(id, score) best first. Every term is quoted, so that no word of a question is an operator of FTS5."""
        terms = _terms(query)
        if not terms:
            return []
        match = " OR ".join(map(_quoted, terms))
        sql = "SELECT rowid, bm25(terms, ?, 1.0) AS score FROM terms WHERE terms MATCH ? ORDER BY score, rowid LIMIT ?"
        return [(number, -score) for number, score in self.store.query(sql, (HEADING_WEIGHT, match, k))]

    def _worth(self, query: str) -> float:
        """Σ idf of the question's terms, as FTS5 counts it; kept by term until something is written to the store."""
        with self._guard:
            version = self.store.version
            if self._idf[0] != version:
                self._idf = (version, len(self.store), {})
            _, passages, known = self._idf
        for term in (terms := _terms(query)):
            if term not in known:
                sql = "SELECT count(*) FROM terms WHERE terms MATCH ?"
                n = int(self.store.query(sql, (_quoted(term),))[0][0])
                known[term] = max(math.log((passages - n + 0.5) / (n + 0.5)), 1e-6) if n <= passages else 1e-6
        return sum(known[term] for term in terms)

    def _dense(
        self, query: str, k: int, others: Sequence[int] = ()
    ) -> tuple[list[tuple[int, float]], dict[int, float]]:
        """The k nearest (id, cosine) best first, exact; and the cosines of these and of `others`, by id."""
        assert self.encoder is not None
        vectors = self._index()
        if not len(vectors):
            return [], {}
        query_vector = self.encoder.encode([query])
        nearest = vectors.search(query_vector, k)[0]
        cosines = vectors.cosines(query_vector[0], others) | dict(nearest)
        return nearest, cosines

    def _index(self) -> VectorIndex:
        """The store's vectors, kept until something is written to it."""
        from dacheng.rag.vectors import VectorIndex

        assert self.encoder is not None
        with self._guard:
            version = self.store.version
            if self._vectors is None or self._vectors[0] != version:
                self._vectors = (version, VectorIndex(*self.store.vectors(self.encoder.name)))
            return self._vectors[1]


def weighted_scores(bm25: Mapping[int, float], cosines: Mapping[int, float], worth: float) -> dict[int, float]:
    """For each id of either: share^SHARPNESS · bm25 / max + w · cosine, with w = DENSE_WEIGHT; 0 for what is absent.

    worth: Σ idf of the question's terms; share = max / worth says how much of the question the best passage has, near 1
    where it was asked in the documents' words and near 1/2 where it was not, and then words mislead.
    """
    top = max(bm25.values(), default=0.0)
    of_bm25 = (top / worth) ** SHARPNESS / top if top > 0 and worth > 0 else 0.0
    return {
        number: of_bm25 * bm25.get(number, 0.0) + DENSE_WEIGHT * cosines.get(number, 0.0)
        for number in bm25.keys() | cosines.keys()
    }


def reciprocal_ranks(rankings: Sequence[Sequence[tuple[int, float]]], k_rrf: int) -> dict[int, float]:
    """Σ 1 / (k_rrf + rank) over the rankings that hold an id."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, (number, _) in enumerate(ranking, 1):
            scores[number] = scores.get(number, 0.0) + 1.0 / (k_rrf + rank)
    return scores


def _terms(query: str) -> list[str]:
    return analyze_query(query)[:_MAX_TERMS]


def _quoted(term: str) -> str:
    """For MATCH: no word of a question is an operator of FTS5."""
    return '"' + term.replace('"', '""') + '"'
