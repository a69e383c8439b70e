"""Sequence-level distillation (Kim & Rush 2016, section 3.2): the teacher answers, and its answers are the data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError
from dacheng.protocols import SamplingParams
from dacheng.records import Drops, Record

if TYPE_CHECKING:
    from dacheng.engine.engine import Engine
    from dacheng.text import ChatRenderer

_BEGINNING = b'{"number": '  # of every line
_AT_ONCE = 64  # conversations between two writes to the file: what a kill loses


def write_answers(
    engine: Engine,
    renderer: ChatRenderer,
    records: Sequence[Record],
    out: Path,
    params: SamplingParams,
    drops: Drops,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Appends to `out` a JSON line {"messages": […]} for each conversation, its last answer in the teacher's words; the
    number of lines in the file. Conversations that are in it already are not asked again, so a stopped call goes on.

    An answer that does not end, or is empty, is dropped and counted: a student would learn not to stop. The seed of a
    conversation's answer is params.seed and its number. Raises DachengError for a conversation without a question, and
    for a file that holds anything but such answers.
    """
    done = _numbers(out)
    waiting = [(i, record) for i, record in enumerate(records) if i not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(waiting), _AT_ONCE):
        part = waiting[start : start + _AT_ONCE]
        questions = [_question(record) for _, record in part]
        prompts = [renderer.render(question, add_generation_prompt=True).token_ids for question in questions]
        own = [_seeded(params, i) for i, _ in part]
        answers = engine.generate(prompts, own)
        with out.open("a", encoding="utf-8") as file:
            for (i, record), question, answer in zip(part, questions, answers):
                line: dict[str, Any] = {"number": i}
                if answer.finish_reason != "stop" or not answer.text.strip():
                    reason = "answer_does_not_end" if answer.finish_reason != "stop" else "answer_is_empty"
                    drops.drop(reason, example=record.id)
                    line["dropped"] = reason
                else:
                    line["messages"] = [*question, {"role": "assistant", "content": answer.text.strip()}]
                    drops.keep(len(answer.text.encode("utf-8", "surrogatepass")))
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if progress is not None:
            progress(len(done) + start + len(part))
    return len(done) + len(waiting)


def _question(record: Record) -> list[dict[str, Any]]:
    """The conversation up to its last user's turn."""
    messages = list(record.messages or [{"role": "user", "content": record.text or ""}])
    while messages and messages[-1].get("role") == "assistant":
        messages.pop()
    if not messages or messages[-1].get("role") == "system" or not messages[-1].get("content"):
        raise DachengError("a conversation without a question", field="messages", value=record.id,
                           remedy="remove it, or end it with a user's turn")  # fmt: skip
    return messages


def _seeded(params: SamplingParams, number: int) -> SamplingParams:
    from dataclasses import replace

    from dacheng.train.rng import derive_seed

    return params if params.seed is None else replace(params, seed=derive_seed(params.seed, "answer", number))


def _numbers(out: Path) -> set[int]:
    """Of the conversations in the file. A last line that a kill has cut is cut off; nothing else is touched."""
    if not out.is_file():
        return set()
    found, whole = set(), 0
    with out.open("r+b") as file:
        for place, line in enumerate(file, 1):
            if not line.endswith(b"\n") and (line.startswith(_BEGINNING) or _BEGINNING.startswith(line)):
                file.truncate(whole)
                break
            found.add(_number(line, f"line {place} of {out}"))
            whole += len(line)
    return found


def _number(line: bytes, where: str) -> int:
    try:
        if line.endswith(b"\n"):
            return int(json.loads(line)["number"])
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise DachengError(f"{where} is no answer of a teacher", field="out", value=line[:80],
                       remedy="name another file: this one stays as it is")  # fmt: skip
