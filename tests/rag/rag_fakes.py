"""A small library of passages and a store in memory, for tests that need neither files nor a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dacheng.protocols import Completion
from dacheng.rag.passages import Passage, passage_key
from dacheng.rag.questions.rarity import Rarity, fold, passage_terms
from dacheng.rag.retrieve import Hit
from dacheng.text.analyzer import analyze_query


def passage(number: int, source: str, heading: str, text: str, kind: str = "code", language: str = "en") -> Passage:
    key = passage_key(source, heading, text)
    return Passage(number, source, heading, 1, 1 + text.count("\n"), text, kind, language, key)  # type: ignore[arg-type]


def library(modules: int = 30) -> list[Passage]:
    """Modules of functions, each with a signature and a docstring of its own words."""
    tools = _words("hammer saw drill chisel plane wrench file rasp clamp vise anvil lathe router sander mallet awl")
    stuff = _words("oak pine maple walnut cherry birch cedar ash elm beech teak mahogany spruce larch yew willow")
    does = (
        ("polish", "Split each {0} board of pile {1} along {2} line {3} into slats."),
        ("measure", "Measure every {0} board of pile number {1} with the {2} of shelf {3}."),
        ("bend", "Return what {0} planks of row {1} weigh on {2} scale {3}."),
        ("glue", "Join the {0} halves of box {1} at {2} seam {3} overnight."),
        ("carve", "Remove {0} bark from trunk {1} by {2} stroke {3} of a day."),
    )
    found = []
    for m in range(modules):
        module = f"{tools[m % 16]}{m}"
        for v, (verb, told) in enumerate(does):
            wood = stuff[(m * 3 + v) % 16]
            name = f"{verb}_{wood}"
            text = (
                f"{module}.{name}(board, depth={m + v + 2}, *, label='{wood}{m}')\n"
                f"{told.format(wood, m, tools[v], m * 7 + v)}\n\n"
                f"Returns the {wood} slat counter {m}. Raises {wood.capitalize()}{m}Error if the {tools[v]} is blunt.\n"
            )
            found.append(passage(len(found) + 1, f"{module}.py", f"{module}.{name}", text))
    return found


def _words(text: str) -> list[str]:
    return text.split()


class FakeStore:
    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = list(passages)

    def all(self) -> Iterator[Passage]:
        return iter(self.passages)

    def find(self, key: str) -> Passage | None:
        return next((p for p in self.passages if p.key == key), None)

    def __len__(self) -> int:
        return len(self.passages)


class FakeRetriever:
    """Ranks by the idf of the question's terms that a passage has."""

    mode, encoder = "bm25", None

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.store, self.rarity = FakeStore(passages), Rarity.of(passages)
        self.searched = 0

    def search(self, query: str, k: int = 5, mode: str = "hybrid") -> list[Hit]:
        self.searched += 1
        asked = list(dict.fromkeys(map(fold, analyze_query(query))))
        scored = []
        for item in self.store.passages:
            terms = passage_terms(item)
            score = sum(self.rarity.idf(t) for t in asked if t in terms)
            if score > 0:
                scored.append((score / (30 + len(terms)) * 40, item))
        best = sorted(scored, key=lambda pair: (-pair[0], pair[1].id))[:k]
        return [Hit(item, score, score, None, rank, None) for rank, (score, item) in enumerate(best, 1)]


class Echo:
    """A language model that says the heading of the first source it is shown, and cites it; counts what it is asked."""

    def __init__(self, text: str | None = None) -> None:
        self.text, self.prompts, self.params = text, [], []

    def generate(self, prompts, params):
        self.prompts += list(prompts)
        self.params += list(params)
        return [Completion(list(range(10)), [1, 2, 3], self.text or self._said(prompt), "stop") for prompt in prompts]

    @staticmethod
    def _said(prompt: str) -> str:
        line = next((line for line in prompt.splitlines() if line.startswith("[1] ")), "[1] nothing")
        return f"It is {line.removeprefix('[1] ')}. [1]"
