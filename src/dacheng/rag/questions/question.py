"""A question about documents, with the answers that count as right and the passages that hold them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dacheng.errors import DamagedFile, UsageError

Kind = Literal[
    "cloze", "which", "definition", "signature", "where", "table", "hand", "raises", "returns", "model", "foreign"
]  # fmt: skip
MAX_LINE = 64 * 1024  # bytes of one question in a file


@dataclass(frozen=True, slots=True)
class Question:
    """answers: each accepted by itself; () where the documents have none. passages: keys of the passages that hold it.
    reply: the short sentence to teach, which copies the answer exactly, without its citation mark. synthetic: made by a
    template or a model. source: the document (or part of one) it was drawn from, "" for none."""

    id: str
    question: str
    answers: tuple[str, ...]
    passages: tuple[str, ...]
    kind: Kind
    language: str
    synthetic: bool
    reply: str = ""
    source: str = ""

    @property
    def answerable(self) -> bool:
        return bool(self.answers)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Question:
        """Raises UsageError for anything but what to_dict makes."""
        known: dict[str, type] = {
            "id": str,
            "question": str,
            "kind": str,
            "language": str,
            "synthetic": bool,
            "reply": str,
            "source": str,
        }
        if not isinstance(values, dict) or set(values) - set(known) - {"answers", "passages"}:
            raise _refused(values)
        rest: dict[str, Any] = {"synthetic": True, "reply": "", "source": "", "language": "en"} | values
        if any(not isinstance(rest.get(name), type_) for name, type_ in known.items()):
            raise _refused(values)
        lists = {name: rest.get(name, []) for name in ("answers", "passages")}
        if any(not isinstance(v, list | tuple) or any(not isinstance(x, str) for x in v) for v in lists.values()):
            raise _refused(values)
        if rest["kind"] not in get_args(Kind) or not rest["question"].strip():
            raise _refused(values)
        return cls(**{**rest, **{name: tuple(v) for name, v in lists.items()}})


def make_id(*parts: str) -> str:
    """A name for a question that stays the same wherever and whenever it is drawn."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """JSON lines; the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.tmp")
    with open(staging, "w", encoding="utf-8") as file:
        for question in questions:
            file.write(json.dumps(question.to_dict(), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(staging, path)


def read_questions(path: Path) -> list[Question]:
    """What write_questions wrote, or a file of the user's in the same form. Raises DamagedFile with the line."""
    found = []
    with open(path, encoding="utf-8") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if not line.strip():
                continue
            try:
                found.append(Question.from_dict(json.loads(line)))
            except (ValueError, UsageError) as error:
                raise DamagedFile(
                    "this line is not a question", field=f"{path}:{number}", value=line[:120],
                    remedy='{"id", "question", "answers": […], "passages": […], "kind", "language"} on one line',
                ) from error  # fmt: skip
    return found


def _refused(values: Any) -> UsageError:
    return UsageError("this is no question", field="question", value=values, remedy=f"kind: one of {get_args(Kind)}")
