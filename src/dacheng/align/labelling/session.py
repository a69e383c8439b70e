"""Who is shown which pair next, and in which order its replies stand."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from dacheng.align.labelling.labels import Label, LabelStore, check_annotator, in_force
from dacheng.align.labelling.pairs import Pair
from dacheng.data.order import permutation
from dacheng.errors import UsageError

SAID = {"first2": (0, 2), "first1": (0, 1), "tie": (None, 0), "second1": (1, 1), "second2": (1, 2), "skip": (None, 0)}
"""What an annotator can say of the replies as they are shown: (which of the two, strength)."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A pair as an annotator sees it: first is the reply, "a" or "b", that stands first or on the left."""

    pair: Pair
    first: str
    done: int
    total: int

    @property
    def replies(self) -> tuple[str, str]:
        return (self.first, "b" if self.first == "a" else "a")


class Session:
    """Pairs and the labels they get. All annotators go through the pairs in one order, drawn by the seed, so that the
    first of them are labelled by all and agreement can be told early. Which reply stands first is drawn for each pair
    and annotator: half of the pairs are seen the other way round. Several threads may use it."""

    def __init__(self, pairs: Sequence[Pair], store: LabelStore, seed: int = 0) -> None:
        order = permutation(len(pairs), seed)
        self.pairs = {pairs[int(i)].id: pairs[int(i)] for i in order}
        self.store, self.seed, self._lock = store, seed, threading.Lock()

    def next(self, annotator: str) -> Shown | None:
        """The first pair that they have not labelled; None when all are. Raises UsageError for a name that is none."""
        done = self._done(check_annotator(annotator))
        pair = next((pair for name, pair in self.pairs.items() if name not in done), None)
        return None if pair is None else self._shown(pair, annotator, len(done))

    def count(self, annotator: str) -> int:
        """How many of the pairs they have labelled."""
        return len(self._done(check_annotator(annotator)))

    def say(self, annotator: str, pair: str, said: str, seconds: float | None = None, note: str = "") -> Label:
        """Writes down what they say of a pair, in the words of SAID. Raises UsageError for a pair that is not here, or
        a word that is none."""
        if pair not in self.pairs:
            raise UsageError("there is no such pair", field="pair", value=pair, remedy="ask for the next one")
        if said not in SAID:
            raise UsageError("no such choice", field="choice", value=said, remedy=f"one of {', '.join(SAID)}")
        place, strength = SAID[said]
        shown = self._shown(self.pairs[pair], check_annotator(annotator), 0)
        choice = said if place is None else shown.replies[place]
        return self._append(Label(pair, annotator, choice, strength, shown.first, seconds, note))

    def undo(self, annotator: str) -> Label | None:
        """Takes back their last label that counts; None where there is none."""
        check_annotator(annotator)
        mine = [label for (who, pair), label in in_force(self.store.read()[0]).items()
                if who == annotator and pair in self.pairs]  # fmt: skip
        if not mine:
            return None
        last = mine[-1]  # the later a label was written, the later it stands
        return self._append(Label(last.pair, annotator, "undo", 0, last.first))

    def _append(self, label: Label) -> Label:
        with self._lock:
            return self.store.append(label)

    def _done(self, annotator: str) -> set[str]:
        labels = in_force(self.store.read()[0])
        return {pair for who, pair in labels if who == annotator and pair in self.pairs}

    def _shown(self, pair: Pair, annotator: str, done: int) -> Shown:
        drawn = hashlib.sha256(f"{self.seed} {annotator} {pair.id}".encode()).digest()[0]
        return Shown(pair, "ab"[drawn % 2], done, len(self.pairs))
