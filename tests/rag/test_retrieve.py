import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.errors import UsageError
from dacheng.rag.retrieve import Retriever
from dacheng.rag.store import PassageStore

DOCUMENTS = {
    "foxes.md": "# Foxes\n\nThe quick animal jumps over dogs.\n\n# Dens\n\nA fox lives in a den.",
    "dogs.md": "# Dogs\n\nA lazy animal. It sleeps, and a fox passes.",
    "trees.txt": "Trees have leaves and roots.",
    "红楼.txt": "第一回 开篇\n\n林黛玉进了贾府，见到了贾宝玉。",
    "code.py": "def get_terminal_size(fallback):\n    return fallback\n",
}
ANIMALS = ["fox", "dog", "tree"]


class Toy:
    """Vectors of length 1 by which animals a text names."""

    name, width = "toy", 4

    def encode(self, texts):
        rows = torch.tensor([[*(float(a in text.lower()) for a in ANIMALS), 0.1] for text in texts])
        return torch.nn.functional.normalize(rows, dim=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieve") / "documents"
    folder.mkdir()
    for name, text in DOCUMENTS.items():
        (folder / name).write_text(text)
    with PassageStore.open(folder.parent / "x.db", create=True) as store:
        store.sync(folder)
        ids = store.without_vectors("toy")
        store.put_vectors("toy", ids, Toy().encode([store.get(i).heading + store.get(i).text for i in ids]))
        yield store


def found(hits):
    return [hit.passage.heading or hit.passage.source for hit in hits]


def test_a_term_in_the_heading_weighs_more(store):
    hits = Retriever(store).search("what are dens", 3)
    assert found(hits) == ["Foxes > Dens"] or found(hits) == ["Dens"]
    assert found(Retriever(store).search("animal dogs"))[0] == "Dogs"
    first = Retriever(store).search("animal dogs")[0]
    assert first.score == first.bm25 > 0 and first.rank_bm25 == 1 and first.cosine is first.rank_dense is None


def test_chinese_and_identifiers(store):
    assert found(Retriever(store).search("谁进了贾府？"))[0] == "第一回 开篇"
    assert found(Retriever(store).search("terminal size"))[0] == "code.get_terminal_size"


def test_hybrid_is_the_sum_of_reciprocal_ranks(store):
    retriever = Retriever(store, Toy(), k_rrf=10)
    hits = retriever.search("fox", 10)
    assert retriever.mode == "hybrid" and len(hits) > 3
    for hit in hits:
        ranks = [rank for rank in (hit.rank_bm25, hit.rank_dense) if rank is not None]
        assert hit.score == pytest.approx(sum(1 / (10 + rank) for rank in ranks))
        assert hit.cosine is not None
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_dense_is_exact(store):
    hits = Retriever(store, Toy()).search("a dog and a fox", 3, "dense")
    passages = list(store.all())
    rows = Toy().encode([p.heading + p.text for p in passages]).half().float()
    cosines = rows @ Toy().encode(["a dog and a fox"])[0]
    assert [hit.cosine for hit in hits] == pytest.approx(cosines.sort(descending=True).values[:3].tolist(), abs=1e-3)
    assert hits[0].score == hits[0].cosine and hits[0].rank_dense == 1 and hits[0].bm25 is None


def test_without_an_encoder(store):
    retriever = Retriever(store)
    assert retriever.mode == "bm25" and found(retriever.search("fox")) == found(retriever.search("fox", mode="bm25"))
    with pytest.raises(UsageError, match="encoder"):
        retriever.search("fox", mode="dense")


def test_what_is_written_is_found_at_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.txt").write_text("A fox.")
    with PassageStore.open(tmp_path / "x.db", create=True) as store:
        store.sync(tmp_path / "a")
        retriever = Retriever(store, Toy())
        assert [hit.cosine for hit in retriever.search("fox")] == [None]  # no vectors yet
        store.put_vectors("toy", store.without_vectors("toy"), Toy().encode(["fox"]))
        assert retriever.search("fox")[0].cosine == pytest.approx(1, abs=1e-3)


def test_k(store):
    assert len(Retriever(store).search("fox animal", 1)) == 1 and Retriever(store).search("fox", 0) == []
    assert Retriever(store, Toy()).search("fox", 1000)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(
    ["fox", '"', "'", "*", "NEAR(", ")", "AND", "OR", "NOT", "heading:", "^", "-", "{", "}", ":", "+",
     "\0", "--", ";", "红楼", "\ud800"]
), max_size=12).map(" ".join)))  # fmt: skip
def test_no_question_is_an_expression(store, question):
    for hit in Retriever(store).search(question):
        assert hit.score > 0


def test_operators_are_words(store):
    assert found(Retriever(store).search("dens NOT fox")) == found(Retriever(store).search("fox dens"))
    assert Retriever(store).search("heading : *") == [] and Retriever(store).search("fox " * 5000)


def test_from_threads(store):
    retriever, results = Retriever(store, Toy()), []

    def search():
        results.append(found(retriever.search("a fox")))

    threads = [threading.Thread(target=search) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and all(result == results[0] for result in results)
