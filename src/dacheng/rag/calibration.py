"""What is settled before the exam, on questions that the exam never sees: the gate."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dacheng.rag.answer import FOUND
from dacheng.rag.gate import MIN_EACH, Gate, gate_features
from dacheng.rag.questions import Question, Rarity
from dacheng.rag.questions.near_words import in_plain_words, near_words
from dacheng.rag.questions.rewording import forgetful, plain_words
from dacheng.text.analyzer import analyze_query

if TYPE_CHECKING:
    from dacheng.rag.retrieve import Retriever


def calibrate(retriever: Retriever, questions: Sequence[Question], rarity: Rarity, seed: int = 0) -> Gate:
    """The gate fitted to what retrieval finds for the calibration's questions, each as it is and once more in other
    words; Gate.uncalibrated() (auroc None) where there are fewer than MIN_EACH of either class."""
    answerable = [q.answerable for q in questions]
    if min(sum(answerable), len(answerable) - sum(answerable)) < MIN_EACH:
        return Gate.uncalibrated()
    texts = [q.question for q in questions] + _otherwise(retriever, questions, rarity, seed)
    rows = [gate_features(text, retriever.search(text, FOUND), rarity) for text in texts]
    return Gate.fit(rows, answerable * 2, seed, forms=2)


def _otherwise(retriever: Retriever, questions: Sequence[Question], rarity: Rarity, seed: int) -> list[str]:
    """Each question as somebody asks it who does not know the documents: with words that the encoder finds near; where
    there are none (no encoder, no English), with half of its words lost (see `rewording.forgetful`).

    A question without an answer may have none only for the scope it is asked in (each of its words is somewhere): it
    keeps that.
    """
    rng = random.Random(f"{seed}:forgetful")
    texts = [q.question for q in questions]
    scoped = [not q.answerable and all(term in rarity for term in analyze_query(q.question)) for q in questions]
    near = near_words(retriever.encoder, texts, retriever.store.all()) if retriever.encoder is not None else {}
    if near:
        return [in_plain_words(text, near, rng, scoped=kept) for text, kept in zip(texts, scoped, strict=True)]
    others = [word for text in texts for word in plain_words(text)]
    return [forgetful(text, others, rng, scoped=kept) for text, kept in zip(texts, scoped, strict=True)]
