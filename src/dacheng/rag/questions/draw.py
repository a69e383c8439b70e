"""All questions that the templates find in some passages: made, checked for being ambiguous, and put in order."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from dacheng.rag.questions.chinese import chinese_questions
from dacheng.rag.questions.code import code_questions
from dacheng.rag.questions.hand import holds
from dacheng.rag.questions.prose import prose_questions, table_questions
from dacheng.rag.questions.question import Question
from dacheng.rag.questions.rarity import Rarity
from dacheng.records import Drops
from dacheng.text.analyzer import analyze

if TYPE_CHECKING:
    from dacheng.rag.passages import Passage

MAX_TEXT = 400  # characters of a question


def draw_questions(passages: Sequence[Passage], rarity: Rarity, drops: Drops) -> list[Question]:
    """Every question of every template over `passages`, in their order, unambiguous ones only.

    Dropped and counted: ambiguous (one question with two answers), answer_in_question, answer_not_in_passage, long.
    Questions with one answer in several passages become one, with all their keys.
    """
    by_key = {passage.key: passage for passage in passages}
    groups: defaultdict[tuple[str, ...], list[Question]] = defaultdict(list)
    for passage in passages:
        for question in _of(passage, rarity):
            reason = _fault(question, passage)
            if reason:
                drops.drop(reason, example=question.question[:200])
            else:
                groups[tuple(analyze(question.question))].append(question)
    found = []
    for group in groups.values():
        answers = {" ".join(analyze(q.answers[0])) or q.answers[0] for q in group}
        if len(answers) > 1:
            for question in group:
                drops.drop("ambiguous", example=question.question[:200])
            continue
        keys = tuple(dict.fromkeys(key for q in group for key in q.passages if key in by_key))
        drops.keep()
        if len(group) > 1:
            drops.alter("same_question_merged", len(group) - 1)
        found.append(dataclasses.replace(group[0], passages=keys))
    return found


def in_turn(questions: Iterable[Question], seed: int) -> list[Question]:
    """Shuffled by `seed`, then one of each kind in turn, each document's early before any document's second: a short
    draw is spread over kinds and documents. Depends on the questions' ids only, not on their order."""
    kinds: defaultdict[str, list[Question]] = defaultdict(list)
    for question in sorted(questions, key=lambda q: _shuffle_key(seed, q.id)):
        kinds[question.kind].append(question)
    ordered = {kind: _spread(items) for kind, items in sorted(kinds.items())}
    result: list[Question] = []
    for turn in range(max(map(len, ordered.values()), default=0)):
        result.extend(items[turn] for items in ordered.values() if turn < len(items))
    return result


def _spread(items: list[Question]) -> list[Question]:
    """By how many questions of the same document came before."""
    seen: defaultdict[str, int] = defaultdict(int)
    ranked = []
    for number, item in enumerate(items):
        ranked.append((seen[item.source], number, item))
        seen[item.source] += 1
    return [item for _, _, item in sorted(ranked, key=lambda r: r[:2])]


def _of(passage: Passage, rarity: Rarity) -> Iterator[Question]:
    if passage.kind == "table":
        yield from table_questions(passage)
    elif passage.kind == "code":
        yield from code_questions(passage)
    elif passage.language == "zh":
        yield from chinese_questions(passage, rarity)
    else:
        yield from prose_questions(passage, rarity)


def _fault(question: Question, passage: Passage) -> str | None:
    """Why a question is not to be asked; None where nothing is wrong."""
    answer = question.answers[0].strip()
    if not answer or len(answer) > 120 or len(question.question) > MAX_TEXT:
        return "long"
    if not holds(passage, answer):
        return "answer_not_in_passage"
    terms, asked = analyze(answer), set(analyze(question.question))
    if terms and all(term in asked for term in terms) and question.kind != "where":
        return "answer_in_question"
    return None


def _shuffle_key(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
