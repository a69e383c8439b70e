"""Minutes and measured speeds, made into steps to train and questions to ask."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dacheng.errors import UsageError

EXAM_SHARE = 0.4  # of what is left once the documents are read: two rows of the exam are asked of a model, one twice
TOGETHER_GAIN = 2.0  # the exam asks eight at once, the answer that was measured came alone
START_S = 25.0  # until a trainer has loaded its model and measured its speed, and the adapter is on ours
FEWEST, MOST = 20, 240  # questions of the exam; below some twenty an interval says nothing
SHORTEST_S = 5.0  # of training


@dataclass(frozen=True, slots=True)
class Speeds:
    """answer_s: seconds for one answer of the model with sources, asked alone. train_tokens_per_s: of the
    trainer. tokens_per_example: of one example to train on, prompt included."""

    answer_s: float
    train_tokens_per_s: float
    tokens_per_example: float


@dataclass(frozen=True, slots=True)
class Plan:
    """exam_questions: asked in each row. train_seconds: of the trainer's steps. examples: seen, repeats included."""

    exam_questions: int
    exam_seconds: float
    train_seconds: float
    examples: int
    steps: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(
    minutes: float,
    spent_s: float,
    speeds: Speeds,
    *,
    exam_available: int,
    rows: float,
    batch_tokens: int,
    train: bool = True,
) -> Plan:
    """How the rest of `minutes` is shared out: at most EXAM_SHARE for the exam, everything else for training.

    spent_s: of the minutes, already. rows: of the exam that a model answers, counted by what an answer costs. The exam
    has FEWEST questions even where that takes longer (intervals of fewer say nothing), and training SHORTEST_S.
    UsageError for minutes that are none.
    """
    check_minutes(minutes)
    left = max(0.0, 60 * minutes - spent_s)
    each = max(1e-3, speeds.answer_s * rows / TOGETHER_GAIN)
    fits = int((EXAM_SHARE if train else 1.0) * left / each)
    asked = min(exam_available, max(FEWEST, min(MOST, fits)))
    exam_s = asked * each
    if not train:
        return Plan(asked, exam_s, 0.0, 0, 0)
    train_s = max(SHORTEST_S, left - exam_s - START_S)
    tokens = train_s * speeds.train_tokens_per_s
    return Plan(asked, exam_s, train_s, max(1, int(tokens / max(1.0, speeds.tokens_per_example))),
                max(1, int(tokens / batch_tokens)))  # fmt: skip


def check_minutes(minutes: float) -> None:
    """Raises UsageError for minutes that are none."""
    if not 0 < minutes < float("inf"):
        raise UsageError("a run needs time", field="--minutes", value=minutes, remedy="6, say")
