"""Questions about prose in any language, tables and headings: blanks, definitions, cells, where something is said."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dacheng.rag.questions.question import Kind, Question, make_id
from dacheng.rag.questions.rarity import Rarity
from dacheng.rag.questions.wording import identifiers, is_chinese
from dacheng.rag.sentences import sentences
from dacheng.text.analyzer import analyze

if TYPE_CHECKING:
    from dacheng.rag.passages import Passage

_NAME = re.compile(r"(?<![.!?:] )(?<!^)(?<![\w/])(?:[A-Z][\w'-]+)(?: (?:of |de |van |von )?[A-Z][\w'-]+){0,3}")
_NUMBER = re.compile(r"(?<![\w.,/-])\d[\d,.]*\d(?![\w/-])|(?<![\w.,/-])\d(?![\w./-])")
_YEAR = re.compile(r"(?:1[0-9]|20)\d\d")
_IS = re.compile(
    r"^(?P<what>(?:An? |The )?[A-Za-z][\w .'()/-]{2,50}?) (?:is|are|means|was) "
    r"(?P<said>(?:an?|the|one of) [^.;:]{12,160})"
)
_PRONOUN = re.compile(
    r"^(?:an? |the )?(?:this|that|it|there|they|he|she|we|you|these|those|what|which|here|if|when|one|i|result|first|"
    r"second|following)\b",
    re.IGNORECASE,
)
_WHO = re.compile(
    r"^(?P<who>[A-Z][\w'-]+(?: [A-Z][\w'-]+){1,3}) "
    r"(?P<did>(?:wrote|invented|founded|built|discovered|designed|created|won|led|published|proposed|"
    r"composed|developed|introduced|became|was born|died) [^.;]{6,120})\.?$"
)
_CUT = re.compile(r",| (?:that|which|who|where|when|used|because|so that|in order|and (?:is|are|has|can))\b| \(")
MIN_SENTENCE, MAX_SENTENCE = 40, 220  # characters of a sentence with a blank


def prose_questions(passage: Passage, rarity: Rarity) -> Iterator[Question]:
    """Each template's questions of one passage of prose in a language with words."""
    said = [s.text for s in sentences(passage.text) if not s.is_example and not s.text.startswith("#")]
    for sentence in said:
        if definition := _IS.match(sentence):
            yield from _definition(passage, definition)
        if told := _WHO.match(sentence):
            did = told["did"].strip()
            yield ask(passage, "which", f"Who {did}?", (told["who"],), f"{told['who']} {did}.")
    yield from _blank(passage, said, rarity)
    yield from where_question(passage, said, rarity)


def table_questions(passage: Passage) -> Iterator[Question]:
    """(row, column) -> cell, of rows parted by "|" or tabs under a first row of names."""
    rows = [_cells(line) for line in passage.text.splitlines() if "|" in line or "\t" in line]
    rows = [row for row in rows if row and not all(re.fullmatch(r":?-*:?", cell) for cell in row)]
    if len(rows) < 3 or len(rows[0]) < 2 or any(not cell for cell in rows[0][1:]):
        return
    head, chinese = rows[0], is_chinese(passage.text)
    names = [row[0] for row in rows[1:]]
    for row in rows[1:]:
        if len(row) != len(head) or not row[0] or names.count(row[0]) > 1:
            continue
        for column, cell in list(zip(head, row, strict=True))[1:]:
            if not 0 < len(cell) <= 60 or not column or head.count(column) > 1:
                continue
            text = f"{row[0]}的{column}是什么？" if chinese else f"What is the {column} of {row[0]}?"
            reply = f"{row[0]}的{column}是{cell}。" if chinese else f"The {column} of {row[0]} is {cell}."
            yield ask(passage, "table", text, (cell,), reply)


def where_question(passage: Passage, said: list[str], rarity: Rarity) -> Iterator[Question]:
    """ "Where is it said: …?" of the sentence with the rarest words; the answer is the passage's own heading."""
    heading = passage.heading.split(" > ")[-1].strip()
    usable = [s for s in said if 30 <= len(s) <= 160 and heading.lower() not in s.lower()]
    if not usable or not 2 <= len(heading) <= 60:
        return
    best = max(usable, key=lambda s: (_weight(s, rarity), s)).rstrip("。.;；")
    if is_chinese(best):
        yield ask(passage, "where", f"哪一节说到：“{best}”？", (heading,), f"在“{heading}”一节。")
    else:
        yield ask(
            passage, "where", f"In which section is it said: “{best}”?", (heading,), f"In the section “{heading}”."
        )


def ask(passage: Passage, kind: Kind, text: str, answers: tuple[str, ...], reply: str) -> Question:
    language = "zh" if is_chinese(text) else "en"
    key = make_id(kind, text, passage.key)
    return Question(key, text, answers, (passage.key,), kind, language, True, reply, passage.source)


def _definition(passage: Passage, match: re.Match[str]) -> Iterator[Question]:
    what, verb = match["what"].strip(), "are" if f"{match['what']} are " in match.string else "is"
    said = _CUT.split(match["said"])[0].strip()
    if _PRONOUN.match(what) or len(what.split()) > 5 or len(said.split()) < 3 or len(said.split()) > 14:
        return
    answer = re.sub(r"^(?:an?|the) ", "", said)
    asked = re.sub(r"^(A|An|The) ", lambda m: m[0].lower(), what)
    yield ask(passage, "definition", f"What {verb} {asked}?", (answer,), f"{what} {verb} {said}.")


def _blank(passage: Passage, said: list[str], rarity: Rarity) -> Iterator[Question]:
    """The sentence whose name or number is rarest, with a blank in its place."""
    best: tuple[float, str, str] | None = None
    for sentence in said:
        if not MIN_SENTENCE <= len(sentence) <= MAX_SENTENCE:
            continue
        candidates = [*_NAME.findall(sentence), *_NUMBER.findall(sentence), *identifiers(sentence)]
        for candidate in dict.fromkeys(candidates):
            if len(re.findall(rf"(?<!\w){re.escape(candidate)}(?!\w)", sentence)) != 1 or candidate in passage.heading:
                continue
            weight = _weight(candidate, rarity) / max(1, len(candidate.split())) ** 0.5
            if best is None or (weight, candidate) > best[:2]:
                best = (weight, candidate, sentence)
    if best is None:
        return
    _, answer, sentence = best
    blank = re.sub(rf"(?<!\w){re.escape(answer)}(?!\w)", "____", sentence, count=1)
    what = "year" if _YEAR.fullmatch(answer) else "number" if answer[0].isdigit() else "name"
    yield ask(passage, "cloze", f"Which {what} belongs in the blank: “{blank}”?", (answer,), f"The {what} is {answer}.")


def _weight(text: str, rarity: Rarity) -> float:
    return sum(rarity.idf(term) for term in set(analyze(text)))


def _cells(line: str) -> list[str]:
    parts = line.strip().strip("|").split("|" if "|" in line else "\t")
    return [re.sub(r"[`*]", "", part).strip() for part in parts]
