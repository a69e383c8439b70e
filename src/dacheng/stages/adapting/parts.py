"""What a run is made of. `kitchen.Kitchen` has the real ones; a test has its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dacheng.evaluate.answers import Scores
from dacheng.stages.adapting.plan import Plan, Speeds
from dacheng.stages.adapting.training import Trainer


class AskedQuestion(Protocol):
    """dacheng.rag.questions.Question, as far as a run looks into it."""

    @property
    def id(self) -> str: ...

    @property
    def question(self) -> str: ...

    @property
    def kind(self) -> str: ...


class Parts(Protocol):
    """One run's documents, questions, gate, model and trainer, over the directory of the run.

    writes: whether there is a model that writes the documents' language (else all is quoted). trains: whether it can be
    adapted here. notes: what the user should know of the model and the documents, once they were read.
    """

    writes: bool
    trains: bool
    notes: list[str]

    def read(self, progress: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        """Brings the index up to date: files, passages, bytes, drops, seconds. Raises DachengError where there is
        nothing to ask about."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the documents."""
        ...

    def make_questions(self, seed: int) -> Mapping[str, Sequence[AskedQuestion]]:
        """{"train", "calibration", "exam", "hand"}: made once, and read from the directory after that."""
        ...

    def fit_gate(self, seed: int) -> dict[str, Any]:
        """threshold, auroc, split_sizes; fitted on the calibration split once."""
        ...

    def answer(self, question: str, mode: str) -> Any:
        """A rag.answer.Answer. Called from several threads."""
        ...

    def exam(
        self, questions: Sequence[Any], mode: str, progress: Callable[[int, int], None]
    ) -> dict[str, dict[str, Scores]]:
        """{row: {question: scores}}: the row `mode`, and its twin with or without the gate. What an earlier attempt
        answered is not asked again."""
        ...

    def show(self, answer: Any) -> dict[str, Any]:
        """An answer as plain data: text, citations, abstained, gate_score, nearest, seconds, mode, question."""
        ...

    def passage(self, number: int) -> dict[str, Any] | None:
        """Passage `number` as plain data; None where there is none."""
        ...

    def speeds(self, answer_s: float) -> Speeds: ...

    def trainer(self, plan: Plan, seed: int) -> Trainer:
        """Writes the examples and settings (once) and gives the process that trains."""
        ...

    @property
    def batch_tokens(self) -> int: ...

    @property
    def save_every(self) -> int: ...

    def use_adapter(self, path: Path) -> None:
        """From now on "adapted" answers with this PEFT directory."""
        ...

    def close(self) -> None: ...
