"""What is settled before the exam, on questions that the exam never sees: the gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dacheng.rag.answer import FOUND
from dacheng.rag.gate import MIN_EACH, Gate, gate_features
from dacheng.rag.questions import Question, Rarity

if TYPE_CHECKING:
    from dacheng.rag.retrieve import Retriever


def calibrate(retriever: Retriever, questions: Sequence[Question], rarity: Rarity, seed: int = 0) -> Gate:
    """The gate fitted to what retrieval finds for the calibration's questions; Gate.uncalibrated() (auroc None) where
    there are fewer than MIN_EACH of either class."""
    answerable = [q.answerable for q in questions]
    if min(sum(answerable), len(answerable) - sum(answerable)) < MIN_EACH:
        return Gate.uncalibrated()
    rows = [gate_features(q.question, retriever.search(q.question, FOUND), rarity) for q in questions]
    return Gate.fit(rows, answerable, seed)
