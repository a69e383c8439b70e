"""The questions that a person wrote on Python's own library: 40 with an answer in it, 20 without."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING

from dacheng.rag.questions.question import Question
from dacheng.records import Drops

if TYPE_CHECKING:
    from dacheng.rag.passages import Passage


def hand_questions(
    passages: Iterable[Passage], drops: Drops | None = None, *, lines: str | None = None
) -> list[Question]:
    """The shipped questions (or those of `lines`, JSON lines of the same form), pointing at these passages of `stdlib`.

    A question whose place (source and heading) is missing in this version of Python, or holds none of its answers, is
    left out and counted in `drops`.
    """
    drops = Drops() if drops is None else drops
    there: defaultdict[tuple[str, str], list[Passage]] = defaultdict(list)
    for passage in passages:
        there[passage.source, passage.heading.split(" > ")[-1]].append(passage)
    found = []
    if lines is None:
        lines = (resources.files("dacheng.rag") / "data" / "stdlib_questions.jsonl").read_text("utf-8")
    for line in lines.splitlines():
        item = json.loads(line)
        holding = [p for place in item["where"] for p in there[place["source"], place["heading"]]]
        holding = [p for p in holding if any(holds(p, answer) for answer in item["answers"])]
        if item["answers"] and not holding:
            drops.drop("not_in_this_version", example=item["id"])
            continue
        drops.keep()
        source = holding[0].source if holding else ""
        keys = tuple(p.key for p in holding)
        found.append(
            Question(item["id"], item["question"], tuple(item["answers"]), keys, "hand", "en", False, "", source)
        )
    return found


def holds(passage: Passage, answer: str) -> bool:
    """Whether an accepted answer stands in a passage or its heading, letter case and white space aside."""
    text = " ".join(f"{passage.heading} {passage.text}".split()).casefold()
    return " ".join(answer.split()).casefold() in text
