"""How two rankings become one."""

from __future__ import annotations

import pytest
import torch

from dacheng.rag.dense import ENGLISH
from dacheng.rag.retrieve import DENSE_WEIGHT, SHARPNESS, Retriever, reciprocal_ranks, weighted_scores
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
    found = weighted_scores({1: 8.0, 2: 4.0}, {2: 0.5, 3: 0.4}, 10.0)
    w, words = DENSE_WEIGHT, 0.8**SHARPNESS
    assert found == pytest.approx({1: words, 2: words / 2 + 0.5 * w, 3: 0.4 * w})
    assert weighted_scores({}, {5: 0.2}, 0.0) == pytest.approx({5: 0.2 * w})
    assert weighted_scores({5: 2.0}, {}, 4.0) == pytest.approx({5: 0.5**SHARPNESS})
    assert weighted_scores({}, {}, 1.0) == {}
    below = weighted_scores({}, {1: -0.5, 2: -0.1}, 1.0)
    assert below[2] > below[1]
    assert reciprocal_ranks(([(1, 9.0), (2, 1.0)], [(2, 0.3)]), 10) == pytest.approx({1: 1 / 11, 2: 1 / 12 + 1 / 11})


def test_hybrid_says_what_both_rankings_found(folder):
    encoder = Counting()
    store = opened(folder, encoder)
    hits = Retriever(store, encoder).search("the fox of thing7", 30)
    terms = {hit.passage.id: hit for hit in Retriever(store, encoder).search("the fox of thing7", 30, "bm25")}
    assert hits[0].passage.source == "07.md"
    scores = weighted_scores(
        {number: hit.score for number, hit in terms.items()},
        {hit.passage.id: hit.cosine for hit in hits},
        Retriever(store)._worth("the fox of thing7"),
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


def test_words_decide_where_the_passages_have_them_and_meaning_where_they_do_not(folder):
    """The best passage by words and the best by vectors, 0.3 apart: a question whose other words occur nowhere leans on
    vectors, whatever rank the words gave."""
    retriever = Retriever(opened(folder, Counting()), Counting())
    known = weighted_scores({1: retriever._worth("thing7")}, {1: 0.5, 2: 0.8}, retriever._worth("thing7"))
    assert known[1] > known[2]
    plain = "thing7 somehow nevertheless hereabouts"
    assert retriever._worth(plain) > 3 * retriever._worth("thing7") > 0
    asked = weighted_scores({1: retriever._worth("thing7")}, {1: 0.5, 2: 0.8}, retriever._worth(plain))
    assert asked[2] > asked[1]


def test_an_english_encoder_has_no_say_in_chinese(folder):
    """Whatever its vectors are, the ranking is that of words; another encoder's vectors count."""
    (folder / "zh.md").write_text("# 狐狸\n\n敏捷的狐狸在夜里打猎。\n")
    for name, says in ((f"{ENGLISH}:0", False), ("multilingual", True)):
        encoder = Counting()
        encoder.name = name
        hits = Retriever(opened(folder, encoder), encoder).search("狐狸在哪里打猎？", 3)
        assert hits[0].passage.source == "zh.md" and (hits[0].cosine is not None) == says and (len(hits) > 1) == says
        english = Retriever(opened(folder, encoder), encoder).search("fox of thing7", 3)
        assert english[0].cosine is not None


def test_what_a_question_is_worth_follows_the_store(folder):
    encoder = Counting()
    store = opened(folder, encoder)
    retriever = Retriever(store, encoder)
    before = retriever._worth("thing7")
    for i in range(30, 40):
        (folder / f"{i:02}.md").write_text(f"# Part {i}\n\nAnother thing7.\n")
    store.sync(folder)
    assert retriever._worth("thing7") < before
