"""Retrieval without any extra dependency: a question finds the paragraph that it was asked about."""

import gzip
import json

import pytest

from dacheng.evaluate.ranking import ndcg
from dacheng.rag.retrieve import Retriever
from dacheng.rag.store import PassageStore

pytestmark = pytest.mark.slow


def figures(file, tmp_path) -> float:
    """Mean nDCG@10: a file of one paragraph each, as large paragraphs are cut the best passage of each file counts."""
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        paragraphs = [paragraph for article in json.load(stream)["data"] for paragraph in article["paragraphs"]]
    folder = tmp_path / "documents"
    folder.mkdir()
    for number, paragraph in enumerate(paragraphs):
        (folder / f"{number:04}.txt").write_text(paragraph["context"], encoding="utf-8")
    with PassageStore.open(tmp_path / "x.db", create=True) as store:
        assert store.sync(folder).files == len(paragraphs)
        retriever = Retriever(store)
        values = [
            ndcg(list(dict.fromkeys(hit.passage.source for hit in retriever.search(asked["question"], 40)))[:10],
                 {f"{number:04}.txt": 1}, 10)
            for number, paragraph in enumerate(paragraphs)
            for asked in paragraph["qas"]
        ]  # fmt: skip
    return sum(values) / len(values)


def test_chinese(shared_data, tmp_path):
    """3,219 questions on 848 paragraphs; measured .98."""
    assert figures(shared_data / "cmrc2018" / "cmrc2018_dev.json.gz", tmp_path) >= 0.96


def test_english(shared_data, tmp_path):
    """1,190 questions on 240 paragraphs; measured .97."""
    assert figures(shared_data / "xquad" / "xquad.en.json.gz", tmp_path) >= 0.95
