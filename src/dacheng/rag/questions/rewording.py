"""Other words for the same question. People rarely ask in a document's own words; templates always do, and a gate
calibrated on those alone would take a person's question for one that has no answer (docs/lab-notes)."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence

from dacheng.rag.questions.question import Question, make_id
from dacheng.text.analyzer import STOP_WORDS, stem

FORGOTTEN = 0.5
PLAIN = re.compile(r"(?<![\w.])[a-z]{3,}(?![\w.(])")
DOTTED = re.compile(r"\b(?:\w+\.)+(\w+)")

# Everyday words, in both directions; neither is always the other's equal, as with people.
_GROUPS = """
returns gives|gets|yields|delivers; return give|get|yield|deliver; creates makes|builds|sets up; removes
deletes|drops; sets changes|assigns|puts; computes calculates|works out; checks tests|tells|finds out; reads
loads|takes in; converts turns|changes|transforms; sends passes|transmits; finds locates|looks up; opens
starts|begins; closes shuts|ends; adds appends|puts; prints shows|displays; copies duplicates|clones; splits
divides|breaks; joins combines|puts together; parses reads|analyses; waits pauses|stays; runs executes|starts;
stops ends|halts; replaces swaps|substitutes; list sequence|series; string text|str; number count|amount; file
document; directory folder; object thing|item; name title; argument parameter|option; operation action; specified
given|stated; given supplied|particular; raises throws; current present|running; new fresh; first initial; last
final; all every|each; whether if; error failure|mistake; length size; type kind|sort; contains holds|has; empty
blank; line row; largest biggest|greatest; smallest least; equal same; different other; allowed permitted; required
needed|necessary; begin start; end finish; using with; value result; called named; known famous; large big; small
little; city town; built constructed; wrote authored; important major; writes saves|puts out; message note; many
numerous; raise throw; word term; between among
"""
_ENGLISH: dict[str, list[str]] = {}
for _group in " ".join(_GROUPS.split()).split(";"):
    _first, _, _rest = _group.strip().partition(" ")
    if _rest:
        _ENGLISH[_first] = [part.strip() for part in _rest.split("|")]
_CHINESE = {
    "什么": ("啥", "什么东西"), "多少": ("几多", "多少"),
    "哪一年": ("哪年", "何年"), "谁": ("哪个人", "何人"),
    "建立": ("创建", "成立"), "称为": ("叫做", "称作"),
    "位于": ("在", "坐落于"), "写": ("撰写", "创作"),
    "开始": ("起始", "开始"), "包括": ("包含", "含有"),
    "主要": ("首要", "主要"), "使用": ("运用", "采用"),
    "共有": ("一共有", "总共有"), "是由": ("由", "是被"),
    "著名": ("有名", "知名"),
}  # fmt: skip
_OPENINGS = (
    ("Which function", ("What is the function called that", "Which routine", "Please name the function that")),
    ("Which method", ("What is the method called that", "Which call", "Please name the method that")),
    ("Which class", ("What is the class called that", "Which type", "Please name the class that")),
    ("What does", ("What exactly does", "So what does")),
    ("Which exception can", ("Which error may", "What exception might")),
    ("What is the default of", ("What is the default value of", "What is the standard value of")),
)  # fmt: skip


def reworded(question: Question, rng: random.Random) -> Question:
    """The question in other words, where there are any: names, quoted sentences and the answers stay as they are."""
    text = _chinese(question.question, rng) if question.language == "zh" else _english(question.question, rng)
    if text == question.question:
        return question
    return dataclasses.replace(question, id=make_id(question.id, text), question=text)


def plain_words(text: str) -> list[str]:
    """The everyday words of an English question: no names, no stop words."""
    return [word for word in PLAIN.findall(text) if stem(word) not in STOP_WORDS]


def forgetful(text: str, others: Sequence[str], rng: random.Random, *, scoped: bool = False) -> str:
    """The question of somebody who has neither the document's words nor the full name of a thing: half of the everyday
    words become others (of other questions) and, unless `scoped`, half of the dotted names lose their scope.

    A gate calibrated without them let 1 in 10 of the answerable questions pass that were asked in plain words, with
    them 3 in 10, at the same rate of stopping (docs/lab-notes/answers.md).
    """

    def lost(match: re.Match[str]) -> str:
        return (
            match[0] if not others or stem(match[0]) in STOP_WORDS or rng.random() > FORGOTTEN else rng.choice(others)
        )

    text = PLAIN.sub(lost, text)
    if scoped:
        return text
    return DOTTED.sub(lambda match: match[1] if rng.random() < FORGOTTEN else match[0], text)


def _english(text: str, rng: random.Random) -> str:
    opening, rest = _opened(text, rng)
    head, quote, tail = rest.partition("“")

    def other(match: re.Match[str]) -> str:
        choices = _ENGLISH.get(match[0])
        return rng.choice(choices) if choices and rng.random() < 0.7 else match[0]

    return opening + re.sub(r"(?<![\w.])[a-z]+(?![\w.(])", other, head) + quote + tail


def _opened(text: str, rng: random.Random) -> tuple[str, str]:
    """Another opening, and what follows it."""
    if scoped := re.match(r"Which (function|method|class) of ([\w.]+) ", text):
        what, scope = scoped.groups()
        others = (f"Which {scope} {what} ", f"In {scope}, which {what} ", f"What is the {what} of {scope} called that ")
        return rng.choice((scoped[0], *others)), text[scoped.end() :]
    for opening, openings in _OPENINGS:
        if text.startswith(opening):
            return rng.choice((opening, *openings)), text.removeprefix(opening)
    return "", text


def _chinese(text: str, rng: random.Random) -> str:
    head, quote, tail = text.partition("“")
    for word, others in _CHINESE.items():
        if word in head and rng.random() < 0.7:
            head = head.replace(word, rng.choice(others), 1)
    return head + quote + tail
