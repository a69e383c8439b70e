"""What is settled before the exam, on questions that the exam never sees: the gate, and how many sources to show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dacheng.evaluate.answers import score_answer
from dacheng.rag.answer import FOUND, Answerer, Mode
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


def choose_shown(
    answerer: Answerer,
    questions: Sequence[Question],
    mode: Mode,
    *,
    candidates: Sequence[int] = (1, 2),
    limit: int = 32,
) -> dict[int, float]:
    """Share of right answers for each number of sources, on the first `limit` answerable questions of the calibration;
    sets answerer.shown[mode] to the best, of equal ones the smallest."""
    asked = [q for q in questions if q.answerable][:limit]
    if not asked:
        return {}
    found: dict[int, float] = {}
    for shown in sorted(candidates):
        answerer.shown[mode] = shown
        answers = answerer.answer_many([q.question for q in asked], mode, gated=False)
        right = [score_answer(answer, question).right for answer, question in zip(answers, asked, strict=True)]
        found[shown] = sum(right) / len(right)
    answerer.shown[mode] = max(found, key=lambda shown: (found[shown], -shown))
    return found
