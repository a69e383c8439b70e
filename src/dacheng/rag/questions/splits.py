"""Questions to learn from, to calibrate on and to be examined with: of different documents, none in two."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError
from dacheng.rag.questions.draw import draw_questions, in_turn
from dacheng.rag.questions.hand import hand_questions
from dacheng.rag.questions.near import without_near
from dacheng.rag.questions.question import Question, read_questions, write_questions
from dacheng.rag.questions.rarity import Rarity
from dacheng.rag.questions.rewording import reworded
from dacheng.rag.questions.unanswerable import unanswerable
from dacheng.records import Drops

if TYPE_CHECKING:
    from dacheng.rag.passages import Passage

MAX_PASSAGES = 20_000  # drawn from at most; of more a seeded sample of whole documents
REWORDED = 0.5  # share of questions that are put in other words than the document's
_MIN_DOCUMENTS = 10  # fewer are parted into stretches of passages
_SHARES = (("train", 0.6), ("calibration", 0.2), ("exam", 0.2))


@dataclass(slots=True)
class Splits:
    """train, calibration, exam: questions, a share of each without an answer. hand: how many of the exam's a person
    wrote. drops: what the templates made and was not asked, by reason. rarity: of the passages they were drawn from."""

    train: list[Question]
    calibration: list[Question]
    exam: list[Question]
    hand: int = 0
    drops: Drops = field(default_factory=Drops)
    rarity: Rarity | None = field(default=None, repr=False)

    def save(self, folder: Path) -> None:
        """train.jsonl, calibration.jsonl and exam.jsonl."""
        for name, _ in _SHARES:
            write_questions(folder / f"{name}.jsonl", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Splits:
        """What `save` wrote, but for drops and rarity."""
        found = {name: read_questions(folder / f"{name}.jsonl") for name, _ in _SHARES}
        hand = sum(q.kind == "hand" for q in found["exam"])
        return cls(found["train"], found["calibration"], found["exam"], hand)

    def counts(self) -> dict[str, Any]:
        return {name: len(getattr(self, name)) for name, _ in _SHARES} | {"hand": self.hand}


def split_questions(
    store: Iterable[Passage] | Any,
    seed: int = 0,
    *,
    train: int = 800,
    calibration: int = 300,
    exam: int = 60,
    unanswerable_share: float = 1 / 3,
    hand: bool = False,
) -> Splits:
    """Draws the three sets from a store (or passages), at most so many of each; the same for the same passages and
    seed.

    A document (of fewer than ten: a stretch of passages) belongs to one set only. unanswerable_share: of calibration
    and exam; train has a tenth (see teaching.py). hand: the shipped questions on `stdlib` come on top of the exam's;
    their documents belong to it. What nearly repeats a question of the exam is removed from the others. Raises
    DachengError where the passages yield no question at all.
    """
    passages = _bounded(list(store.all() if hasattr(store, "all") else store), seed)
    drops, rarity = Drops(), Rarity.of(passages)
    by_hand = hand_questions(passages, drops) if hand else []
    parts = _parts(passages, seed, reserved={q.source for q in by_hand if q.source})
    part_of = {passage.key: name for name, items in parts.items() for passage in items}
    found: dict[str, list[Question]] = {name: [] for name, _ in _SHARES}
    for question in draw_questions(passages, rarity, drops):
        names = {part_of[key] for key in question.passages}
        if len(names) > 1:
            drops.drop("in_two_sets", example=question.question)
        else:
            found[names.pop()].append(question)
    if not any(found.values()):
        raise DachengError(
            "no question could be drawn from these documents", field="documents", value=f"{len(passages)} passages",
            remedy="give longer documents, or questions of your own",
        )  # fmt: skip
    drawn = {name: in_turn(questions, seed) for name, questions in found.items()}
    drawn["train"] = _by_passage(drawn["train"])
    rng = random.Random(f"{seed}:unanswerable")
    pool = [q for name, _ in _SHARES for q in drawn[name]]
    rng.shuffle(pool)
    missing = unanswerable(pool[:3000], rarity, rng)
    sizes = {"exam": exam, "calibration": calibration, "train": train}
    shares = {"exam": unanswerable_share, "calibration": unanswerable_share, "train": 0.1}
    made: dict[str, list[Question]] = {}
    before = list(by_hand)
    for name, size in sizes.items():  # the exam first: the others give way to it
        wanted = round(size * shares[name])
        other_words = random.Random(f"{seed}:{name}")
        asked = (reworded(q, other_words) if other_words.random() < REWORDED else q for q in drawn[name])
        held = _distinct(asked, before, size - wanted)
        share = min(wanted, round(len(held) * shares[name] / (1 - shares[name])) + 1)
        without = _distinct(missing, before, share)
        made[name] = [*held, *without]
        if name != "train":
            before += made[name]
    with_hand = [*by_hand, *made["exam"]]
    return Splits(made["train"], made["calibration"], with_hand, len(by_hand), drops, rarity)


def _by_passage(questions: Sequence[Question]) -> list[Question]:
    """Each followed by the others on its passage: to learn from, they cost little more than one (see teaching.py)."""
    groups: defaultdict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.passages[0]].append(question)
    return [question for group in groups.values() for question in group]


def _distinct(questions: Iterable[Question], others: Sequence[Question], wanted: int) -> list[Question]:
    """The first `wanted` of `questions` that resemble none of `others`."""
    kept: list[Question] = []
    iterator = iter(questions)
    while len(kept) < wanted:
        chunk = [q for _, q in zip(range(wanted - len(kept)), iterator)]
        if not chunk:
            break
        kept += without_near(chunk, others)
    return kept


def _parts(passages: Sequence[Passage], seed: int, reserved: set[str]) -> dict[str, list[Passage]]:
    """The passages of each set, whole documents together; `reserved` documents are the exam's."""
    documents: defaultdict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        documents[passage.source].append(passage)
    units: dict[str, list[Passage]] = {}
    stretches = 1 if len(documents) >= _MIN_DOCUMENTS else -(-2 * _MIN_DOCUMENTS // max(1, len(documents)))
    for source, items in documents.items():
        size = -(-len(items) // stretches)
        for start in range(0, len(items), size):
            units[f"{source}#{start}" if stretches > 1 else source] = items[start : start + size]
    order = sorted(units, key=lambda unit: hashlib.blake2b(f"{seed}:{unit}".encode(), digest_size=8).digest())
    parts: dict[str, list[Passage]] = {name: [] for name, _ in _SHARES}
    total = sum(map(len, units.values()))
    for unit in [u for u in order if u in reserved]:
        parts["exam"] += units[unit]
    for unit in [u for u in order if u not in reserved]:
        # to whoever lacks most of its share: each set gets some unless there are fewer units than sets
        name = max(_SHARES, key=lambda s: s[1] - len(parts[s[0]]) / max(1, total) + (0.2 if not parts[s[0]] else 0))[0]
        parts[name] += units[unit]
    return parts


def _bounded(passages: list[Passage], seed: int) -> list[Passage]:
    if len(passages) <= MAX_PASSAGES:
        return passages
    documents: defaultdict[str, list[Passage]] = defaultdict(list)
    for passage in passages:
        documents[passage.source].append(passage)
    order = sorted(documents, key=lambda name: hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest())
    kept: list[Passage] = []
    for name in order:
        kept += documents[name][: MAX_PASSAGES - len(kept)]
        if len(kept) >= MAX_PASSAGES:
            break
    return kept
