"""What is settled before the exam, on questions that the exam never sees: the gate."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dacheng.rag.answer import FOUND
from dacheng.rag.gate import MIN_EACH, Gate, gate_features
from dacheng.rag.questions import Question, Rarity
from dacheng.rag.questions.rewording import forgetful, plain_words

if TYPE_CHECKING:
    from dacheng.rag.retrieve import Retriever


def calibrate(retriever: Retriever, questions: Sequence[Question], rarity: Rarity, seed: int = 0) -> Gate:
    """The gate fitted to what retrieval finds for the calibration's questions, each as it is and once more with half of
    its words lost (see `rewording.forgetful`); Gate.uncalibrated() (auroc None) where there are fewer than MIN_EACH of
    either class."""
    answerable = [q.answerable for q in questions]
    if min(sum(answerable), len(answerable) - sum(answerable)) < MIN_EACH:
        return Gate.uncalibrated()
    rng = random.Random(f"{seed}:forgetful")
    others = [word for question in questions for word in plain_words(question.question)]
    texts = [q.question for q in questions]
    texts += [forgetful(text, others, rng) for text in texts]
    rows = [gate_features(text, retriever.search(text, FOUND), rarity) for text in texts]
    return Gate.fit(rows, answerable * 2, seed, forms=2)
