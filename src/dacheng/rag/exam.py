"""The exam: every row answers the same questions; answers are journalled, and a resumed exam asks only the rest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dacheng.evaluate.answers import Scores, differences, score_answer, summarise
from dacheng.formats.atomic import replacing_file
from dacheng.rag.answer import Answer, Answerer, Mode, abstain
from dacheng.rag.questions import Question

BATCH = 8  # answers between two writes of the journal
Progress = Callable[[str, int, int], None]
_GATED_BY_DEFAULT = ("adapted", "quote")


@dataclass(slots=True)
class ExamResult:
    """rows: row -> question id -> its scores. Beside each mode's own row (bare and sources without the gate, adapted
    and quote with it) stands its twin, so that the gate's part and the adapter's can be told apart: "sources+gate",
    "adapted-gate", "quote-gate". forgotten: journalled answers of another exam that were thrown away."""

    rows: dict[str, dict[str, Scores]] = field(default_factory=dict)
    forgotten: int = 0

    def summaries(self, seed: int = 0) -> dict[str, dict[str, tuple[float, float, float]]]:
        """Row -> figure -> (mean, low, high)."""
        return {row: summarise(list(scores.values()), seed=seed) for row, scores in self.rows.items()}

    def difference(self, first: str, second: str, seed: int = 0) -> dict[str, tuple[float, float, float]]:
        """Row `first` minus row `second`, paired by question."""
        return differences(self.rows[first], self.rows[second], seed=seed)

    def table(self, seed: int = 0) -> str:
        """Rows and figures as text, for a terminal and for docs."""
        names = (
            "right",
            "all_right",
            "cited_right",
            "answered",
            "abstained",
            "invented",
            "abstention_auroc",
            "seconds",
        )
        lines = ["| row | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for row, figures in self.summaries(seed).items():
            cells = [_cell(figures.get(name), name) for name in names]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


def run_exam(
    answerer: Answerer,
    questions: Sequence[Question],
    modes: Sequence[Mode],
    folder: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> ExamResult:
    """Answers `questions` in each mode; folder/MODE.jsonl gets one line an answer, on disk before the next batch.

    Killed at any moment it goes on where it was: what is journalled under the same questions and settings (anything
    that tells one model, adapter or store from another) is not asked again, a torn last line is; lines of other
    settings are thrown away and counted. progress(mode, done, total) after each batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = ExamResult()
    for mode in modes:
        name = _fingerprint(questions, mode, answerer, settings)
        path = folder / f"{mode}.jsonl"
        lines, forgotten = _journalled(path, name, {q.id for q in questions})
        result.forgotten += forgotten
        left = [q for q in questions if q.id not in lines]
        if progress:
            progress(mode, len(lines), len(questions))
        with open(path, "ab") as file:
            for start in range(0, len(left), batch):
                part = left[start : start + batch]
                for question, answer in zip(part, _answers(answerer, part, mode), strict=True):
                    line = _line(name, question, answer, answerer)
                    lines[question.id] = line
                    file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
                file.flush()
                os.fsync(file.fileno())
                if progress:
                    progress(mode, len(lines), len(questions))
        _add_rows(result, mode, [lines[q.id] for q in questions])
    return result


def read_exam(folder: Path, questions: Sequence[Question], modes: Sequence[Mode]) -> dict[str, list[dict[str, Any]]]:
    """The journalled lines of each mode, in the order of `questions`, those that are there: for a page or a report."""
    found: dict[str, list[dict[str, Any]]] = {}
    for mode in modes:
        lines = {line["id"]: line for line in _lines(folder / f"{mode}.jsonl")}
        found[mode] = [lines[q.id] for q in questions if q.id in lines]
    return found


def _answers(answerer: Answerer, questions: Sequence[Question], mode: Mode) -> list[Answer]:
    """Without the gate: whether it stops an answer is worked out afterwards, for both twins of a row."""
    return answerer.answer_many([q.question for q in questions], mode, gated=False)


def _line(name: str, question: Question, answer: Answer, answerer: Answerer) -> dict[str, Any]:
    ungated = score_answer(answer, question)
    said = answer.abstained
    if answerer.stops(answer):
        draft, cited = answer.text, answer.citations
        abstain(answer)
        gated = score_answer(answer, question)
        if answer.mode not in _GATED_BY_DEFAULT:
            answer.text, answer.citations, answer.abstained = draft, cited, said
    else:
        gated = ungated
    scores = {"ungated": ungated.to_dict(), "gated": gated.to_dict()}
    return {"id": question.id, "exam": name, "accepted": list(question.answers), **answer.to_dict(), "scores": scores}


def _add_rows(result: ExamResult, mode: Mode, lines: Sequence[dict[str, Any]]) -> None:
    for way in ("ungated", "gated"):
        if mode == "bare" and way == "gated":
            continue
        own = (way == "gated") == (mode in _GATED_BY_DEFAULT)
        row = mode if own else f"{mode}{'+' if way == 'gated' else '-'}gate"
        result.rows[row] = {line["id"]: Scores(**line["scores"][way]) for line in lines}


def _fingerprint(
    questions: Sequence[Question], mode: Mode, answerer: Answerer, settings: Mapping[str, Any] | None
) -> str:
    told = {
        "questions": sorted(json.dumps(q.to_dict(), sort_keys=True, ensure_ascii=False) for q in questions),
        "mode": mode, "shown": answerer.shown[mode], "tokens": answerer.tokens, "grammar": answerer.grammar,
        "gate": answerer.gate.to_dict() if answerer.gate else None, "settings": dict(settings or {}),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def _journalled(path: Path, name: str, wanted: set[str]) -> tuple[dict[str, dict[str, Any]], int]:
    """Lines of this exam by question, and how many others were thrown away. The file is left with these only."""
    every = _lines(path)
    mine = {line["id"]: line for line in every if line.get("exam") == name and line["id"] in wanted}
    size = sum(len(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass")) + 1 for line in mine.values())
    if path.exists() and size != path.stat().st_size:
        with replacing_file(path) as file:
            for line in mine.values():
                file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return mine, len(every) - len(mine)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines only: what a killed writer left of its last one is asked again."""
    if not path.exists():
        return []
    found = []
    for raw in path.read_bytes().splitlines():
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict) and {"id", "exam", "scores"} <= set(line):
            found.append(line)
    return found


def _cell(figure: tuple[float, float, float] | None, name: str) -> str:
    if figure is None:
        return "–"
    digits = 2 if name == "seconds" else 3
    return " ".join((f"{figure[0]:.{digits}f}", f"[{figure[1]:.{digits}f}, {figure[2]:.{digits}f}]"))
