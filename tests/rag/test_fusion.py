"""How two rankings become one."""

from __future__ import annotations

import pytest
import torch

from dacheng.rag.retrieve import DENSE_WEIGHT, Retriever, reciprocal_ranks, weighted_scores
from dacheng.rag.store import PassageStore

WORDS = ("fox", "dog", "cat")


class Counting:
    """Vectors of how often three words occur; "nonsense": the same vector for every text."""

    def __init__(self, nonsense: bool = False) -> None:
        self.name, self.width, self.nonsense = f"counting{nonsense}", 4, nonsense

    def encode(self, texts):
        rows = torch.tensor(
            [[1.0, *(0.0 if self.nonsense else 3 * text.count(word) for word in WORDS)] for text in texts]
        )
        return torch.nn.functional.normalize(rows)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "docs").mkdir()
    for i in range(30):
        text = f"Number {i} speaks of a {WORDS[i % 3]} and of thing{i}. " + "The fox again. " * (i % 5)
        (tmp_path / "docs" / f"{i:02}.md").write_text(f"# Part {i}\n\n{text}\n")
    return tmp_path / "docs"


def opened(folder, encoder) -> PassageStore:
    from dacheng.rag.dense import encode_store

    store = PassageStore.open(folder.parent / f"{encoder.name}.db", create=True)
    store.sync(folder)
    encode_store(store, encoder)
    return store


def test_scores_by_hand():
    found = weighted_scores({1: 8.0, 2: 4.0}, {2: 0.5, 3: 0.4})
    w = DENSE_WEIGHT
    assert found == pytest.approx({1: 1 - w, 2: (1 - w) / 2 + w, 3: 0.8 * w})
    assert weighted_scores({}, {5: 0.2}) == pytest.approx({5: w})
    assert weighted_scores({5: 2.0}, {}) == pytest.approx({5: 1 - w})
    assert weighted_scores({}, {}) == {}
    below = weighted_scores({}, {1: -0.5, 2: -0.1})  # nothing to divide by: the order stays
    assert below[2] > below[1]
    assert reciprocal_ranks(([(1, 9.0), (2, 1.0)], [(2, 0.3)]), 10) == pytest.approx({1: 1 / 11, 2: 1 / 12 + 1 / 11})


def test_hybrid_says_what_both_rankings_found(folder):
    encoder = Counting()
    store = opened(folder, encoder)
    hits = Retriever(store, encoder).search("the fox of thing7", 30)
    terms = {hit.passage.id: hit for hit in Retriever(store, encoder).search("the fox of thing7", 30, "bm25")}
    assert hits[0].passage.source == "07.md"
    scores = weighted_scores(
        {number: hit.score for number, hit in terms.items()}, {hit.passage.id: hit.cosine for hit in hits}
    )
    for hit in hits:
        assert hit.score == pytest.approx(scores[hit.passage.id], abs=1e-6) and hit.cosine is not None
        assert hit.bm25 == (terms[hit.passage.id].bm25 if hit.passage.id in terms else None)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_an_encoder_that_knows_nothing_does_not_spoil_what_terms_find(folder):
    encoder = Counting(nonsense=True)
    retriever = Retriever(opened(folder, encoder), encoder)
    for query in ("thing7 fox", "thing12", "cat thing29"):
        by_terms = [hit.passage.id for hit in retriever.search(query, 5, "bm25")]
        assert [hit.passage.id for hit in retriever.search(query, len(by_terms))] == by_terms
