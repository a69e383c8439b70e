"""Questions in other words, by what an encoder finds near."""

from __future__ import annotations

import random

import torch
from rag_fakes import FakeRetriever, library, passage

from dacheng.rag.calibration import calibrate
from dacheng.rag.questions import split_questions
from dacheng.rag.questions.near_words import in_plain_words, near_words
from dacheng.text.analyzer import analyze

ALIKE = (("delete", "remove", "erase"), ("directory", "folder"), ("tree", "wood"))


class Meanings:
    """A vector for each group of words that mean the same, and one for each other word."""

    name, width = "meanings", 512

    def encode(self, texts):
        rows = torch.zeros(len(texts), self.width)
        for row, text in zip(rows, texts):
            for term in text.lower().split():
                group = next((i for i, words in enumerate(ALIKE) if term.rstrip("sd") in words), None)
                at = group if group is not None else 10 + sum(map(ord, term)) % (self.width - 10)
                row[at] = 1.0
        return torch.nn.functional.normalize(rows)


def passages():
    texts = ("remove a folder", "erase the wood", "delete one directory", "a tree deletes nothing")
    return [passage(i, f"{i}.md", f"H{i}", texts[i % 4]) for i in range(12)]


def test_words_of_the_passages_stand_for_those_of_the_question():
    near = near_words(Meanings(), ["Which function deletes a directory called zebra?"], passages())
    assert set(near["deletes"]) == {"remove", "erase"}  # its own forms are no other words
    assert near["directory"] == ["folder"]
    assert "zebra" not in near and "which" not in near
    assert near_words(Meanings(), ["木头"], passages()) == near_words(Meanings(), ["deletes"], []) == {}


def test_a_question_in_plain_words():
    near, rng = {"deletes": ["removes"], "tree": ["folder"]}, random.Random(0)
    asked = [in_plain_words("Which function of shutil.x deletes a tree?", near, rng) for _ in range(60)]
    assert not any("shutil" in text for text in asked)
    assert any("removes a folder" in text for text in asked) and any("deletes" in text for text in asked)
    kept = [in_plain_words("Which function of shutil.x deletes a tree?", near, rng, scoped=True) for _ in range(20)]
    assert all(text.startswith("Which function of shutil.x ") for text in kept)
    names = {in_plain_words("What does os.path.join return?", near, rng) for _ in range(20)}
    assert names == {"What does os.path.join return?", "What does join return?"}


def test_the_gate_is_calibrated_on_them_where_there_is_an_encoder():
    """The same questions twice; what has no answer for its scope alone keeps the scope."""
    items = library()
    splits = split_questions(items, 0, train=10, calibration=60, exam=10)
    asked: list[str] = []

    class Listening(FakeRetriever):
        encoder = Meanings()

        def search(self, query, k=5, mode="hybrid"):
            asked.append(query)
            return super().search(query, k, mode)

    retriever = Listening(items)
    gate = calibrate(retriever, splits.calibration, splits.rarity)
    n = len(splits.calibration)
    assert len(asked) == 2 * n and gate.auroc is not None
    assert gate.sizes == (
        2 * sum(q.answerable for q in splits.calibration),
        2 * sum(not q.answerable for q in splits.calibration),
    )
    for question, other in zip(splits.calibration, asked[n:]):
        if not question.answerable and all(term in splits.rarity for term in analyze(question.question)):
            assert other.count(".") == question.question.count(".")
