"""Marks like [1] in an answer: a grammar that makes them well formed, and what each one points at."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dacheng.protocols import Grammar
from dacheng.rag.questions.rarity import Rarity, fold
from dacheng.rag.sentences import sentences
from dacheng.text.analyzer import analyze, analyze_query

if TYPE_CHECKING:
    from dacheng.rag.passages import Passage
    from dacheng.rag.retrieve import Hit

MAX_CHARACTERS = 240  # of an answer before its mark
SECOND = 0.3  # of the best sentence's worth: what a further one must have to be quoted too
_CUES = tuple(
    (re.compile(asks, re.IGNORECASE), re.compile(looks))
    for asks, looks in (
        (r"\b(?:raises?|exception|error)\b", r"\b[A-Z]\w*(?:Error|Exception|Warning|Exit)\b"),
        (r"\breturns?\b", r"^Returns?\b|[Rr]eturn value|^The (?:result|value) "),
        (r"\bdefault\b", r"\w=|\b[Dd]efaults?\b"),
        (r"\b(?:how (?:many|much|long|old)|when|year|number|width|size)\b|多少|几|哪一?年", r"\d"),
    )
)
SIGNATURE = re.compile(r"(?:class |def )?[\w.]+\(.*\)(?: *->.*)?:?$")
_ON_ARGUMENTS = re.compile(r"default|argument|parameter|option|signature|take", re.IGNORECASE)
_MARK = re.compile(r"\[(\d{1,3})\]")


@dataclass(frozen=True, slots=True)
class Citation:
    """number: as in the text, [number]. quote: the sentence of the passage that supports the answer best."""

    number: int
    passage_id: int
    source: str
    heading: str
    first_line: int
    last_line: int
    quote: str
    key: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def citing(shown: int) -> Grammar:
    """One sentence that ends with " [n]", n in 1..shown: text in one line of at most MAX_CHARACTERS, in which no "[" is
    followed by a digit, and no full stop by a space (a small model talks on)."""
    numbers = "|".join(str(n) for n in range(1, shown + 1))
    unit = r"[^\n\r\[.!?。！？]|[.!?][^\s\[]|\[[^0-9\s]"
    return Grammar("regex", rf"[^\s\[.!?。！？]({unit}){{0,{MAX_CHARACTERS}}}[.!?。！？]? \[({numbers})\]")


def marks(text: str) -> list[int]:
    """The numbers cited, each once, in order."""
    return list(dict.fromkeys(int(number) for number in _MARK.findall(text)))


def citations(text: str, hits: Sequence[Hit], shown: int, question: str) -> list[Citation]:
    """What the marks of an answer point at. A number that no source shown has points at nothing and is left out."""
    said = _MARK.sub("", text)
    return [cite(n, hits[n - 1].passage, f"{said} {question}") for n in marks(text) if 1 <= n <= min(shown, len(hits))]


def cite(number: int, passage: Passage, about: str) -> Citation:
    quote = " ".join(best_sentences(passage, about, limit=1))
    return Citation(number, passage.id, passage.source, passage.heading, passage.first_line, passage.last_line, quote,
                    passage.key)  # fmt: skip


def best_sentences(passage: Passage, about: str, *, limit: int, rarity: Rarity | None = None) -> list[str]:
    """At most `limit` sentences of a passage that have most of what `about` says, in their order.

    A term counts by its idf among the passage's own sentences (what all of them say parts none) and, with `rarity`,
    among all passages. Terms of the heading hardly count, terms that a chosen sentence has no more. A sentence with the
    kind of thing asked for (a number, an exception, what is returned) counts more.
    """
    every = [s for s in sentences(passage.text) if re.search(r"\w", s.text)]
    said = [s.text for s in every if not s.is_example or passage.kind == "table"] or [s.text for s in every]
    if len(said) <= 1:
        return said
    heading = set(map(fold, analyze(passage.heading)))
    terms = [set(map(fold, analyze(sentence))) for sentence in said]
    wanted = {}
    for term in map(fold, analyze_query(about)):
        among = sum(term in found for found in terms)
        overall = min(1.0, 0.3 + rarity.idf(term) / 5) if rarity else 1.0
        wanted[term] = math.log(1 + len(said) / (among + 0.5)) * overall * (0.1 if term in heading else 1.0)
    cues = [looks for asks, looks in _CUES if asks.search(about)]
    bonus = [1.0 + sum(bool(looks.search(sentence)) for looks in cues) for sentence in said]
    if not _ON_ARGUMENTS.search(about):  # a signature has every argument's name and says nothing about them
        bonus = [0.2 * worth if SIGNATURE.match(line) else worth for worth, line in zip(bonus, said, strict=True)]
    chosen: list[int] = []
    first = 0.0
    for _ in range(min(limit, len(said))):
        worth = {
            i: bonus[i] * (0.2 + sum(wanted.get(t, 0.0) for t in terms[i])) / (10 + len(terms[i])) ** 0.35
            for i in range(len(said))
            if i not in chosen
        }
        best = max(worth, key=lambda i: (round(worth[i], 9), -i))
        if chosen and worth[best] < SECOND * first:
            break
        first = worth[best] if not chosen else first
        chosen.append(best)
        wanted = {term: weight for term, weight in wanted.items() if term not in terms[best]}
    return [said[i] for i in sorted(chosen)]
