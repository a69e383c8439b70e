"""Questions that the documents do not answer: from other worlds, and from their own with something swapped."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence

from dacheng.rag.questions import foreign
from dacheng.rag.questions.question import Question, make_id
from dacheng.rag.questions.rarity import Rarity
from dacheng.text.analyzer import STOP_WORDS, analyze

_SCOPE = re.compile(r"(?:(?<=^Which method)|(?<=^Which function)|(?<=^Which class)) of ([\w.]+) ")


def unanswerable(pool: Sequence[Question], rarity: Rarity, rng: random.Random) -> Iterator[Question]:
    """Without end in principle, several kinds in turn, none made twice; ends when no kind has anything left.

    pool: answerable questions whose names are borrowed. What is made is kept only where the documents cannot answer: a
    term of it occurs in no passage at all. Only a borrowed scope may have every word somewhere, never together.
    """
    swapped = _borrowed(pool, rng)
    makers = [_general(pool, rng), _libraries(pool, rng), _doings(pool, rng), _arguments(pool, rng), _names(pool, rng)]
    makers.append(swapped)
    seen = {question.question for question in pool}
    while makers:
        for maker in list(makers):
            for made in maker:
                text, language = made
                if text not in seen and (maker is swapped or _unheard(text, rarity)):
                    seen.add(text)
                    yield Question(make_id("foreign", text), text, (), (), "foreign", language, True)
                    break
            else:
                makers.remove(maker)


def _unheard(text: str, rarity: Rarity) -> bool:
    return any(term not in rarity for term in analyze(text) if term not in STOP_WORDS)


def _shuffled(items: Sequence[str], rng: random.Random) -> list[str]:
    return rng.sample(items, len(items))


def _mixed(first: Sequence[str], second: Sequence[str], rng: random.Random) -> list[str]:
    """Each of both shuffled, one of each in turn."""
    pairs = itertools.zip_longest(_shuffled(first, rng), _shuffled(second, rng))
    return [text for pair in pairs for text in pair if text is not None]


def _general(pool: Sequence[Question], rng: random.Random) -> Iterator[tuple[str, str]]:
    chinese = sum(q.language == "zh" for q in pool)
    if chinese < len(pool):
        asked = [form.format(thing) for thing in foreign.THINGS_EN for form in foreign.ASKED_EN]
        yield from ((text, "en") for text in _mixed(foreign.GENERAL_EN, asked, rng))
    if chinese:
        asked = [form.format(thing) for thing in foreign.THINGS_ZH for form in foreign.ASKED_ZH]
        yield from ((text, "zh") for text in _mixed(foreign.GENERAL_ZH, asked, rng))


def _libraries(pool: Sequence[Question], rng: random.Random) -> Iterator[tuple[str, str]]:
    """What is asked of the documents' own code, asked of code that is not in them."""
    if not any(q.kind in ("signature", "returns") for q in pool):
        return
    for name in _shuffled(foreign.LIBRARIES, rng):
        yield f"What does {name} return?", "en"
    for name in _shuffled(foreign.LIBRARIES, rng):
        yield f"What is the default of {rng.choice(foreign.ARGUMENTS)} in {name}?", "en"


def _doings(pool: Sequence[Question], rng: random.Random) -> Iterator[tuple[str, str]]:
    """The documents' own modules and classes, asked for what they do not do."""
    scopes = sorted({m[1] for q in pool if q.kind == "which" and (m := _SCOPE.search(q.question))})
    if not scopes:
        return
    for _ in range(3):
        for doing in _shuffled(foreign.DOINGS, rng):
            scope = rng.choice(scopes)
            what = rng.choice(("method", "function")) if scope.rpartition(".")[2][:1].islower() else "method"
            yield rng.choice((f"Which {what} of {scope} {doing}?", f"Which {scope} {what} {doing}?")), "en"


def _arguments(pool: Sequence[Question], rng: random.Random) -> Iterator[tuple[str, str]]:
    """An argument that a function does not have."""
    names = sorted({q.question.split(" in ")[-1].rstrip("?") for q in pool if q.kind == "signature"})
    for argument in _shuffled(foreign.ARGUMENTS, rng):
        if names:
            name = rng.choice(names)
            yield rng.choice((f"What is the default of {argument} in {name}?",
                              f"What does the {argument} argument of {name} do?")), "en"  # fmt: skip


def _names(pool: Sequence[Question], rng: random.Random) -> Iterator[tuple[str, str]]:
    """The name in a question becomes one that exists nowhere: parts of other names, or Han characters, put together."""
    named = [q for q in pool if q.kind in ("returns", "signature", "raises", "definition")]
    parts = sorted({part for q in named for part in re.findall(r"[a-z]{4,}", q.question.lower())} - STOP_WORDS)
    for question in rng.sample(named, len(named)):
        if question.language == "zh":
            others = [q.question for q in named if q.language == "zh" and q is not question]
            if others and len(question.question) > 6:
                swapped = rng.choice(others)[:2][::-1] + question.question[2:]
                yield swapped, "zh"
            continue
        match = re.search(r"[\w.]*[._][\w.]+\w", question.question)
        if match is None or len(parts) < 2:
            continue
        made = "".join(rng.sample(parts, 2))
        scope, dot, _ = match[0].rpartition(".")
        yield question.question.replace(match[0], f"{scope}{dot}{made}", 1), "en"


def _borrowed(pool: Sequence[Question], rng: random.Random) -> Iterator[tuple[str, str]]:
    """The scope of one question over what another asks ("Which function of A does what only B's does?"), from another
    package: the hardest kind, since a passage that says all but the scope is there."""
    scoped = [q for q in pool if q.kind == "which" and q.language == "en" and _SCOPE.search(q.question)]
    for question, other in zip(scoped, rng.sample(scoped, len(scoped)), strict=True):
        mine, theirs = _SCOPE.search(question.question), _SCOPE.search(other.question)
        if mine is not None and theirs is not None and mine[1].split(".")[0] != theirs[1].split(".")[0]:
            yield question.question.replace(mine[0], theirs[0], 1), "en"
