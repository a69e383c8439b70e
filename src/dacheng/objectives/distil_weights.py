"""What a student shares with its teacher, as the knobs of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dacheng.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DistilWeights:
    """What a student shares with its teacher, and how much of each counts (0: not at all).

    soft: T² · KL of the distributions at `temperature`. hard: the labels' or the next tokens' cross-entropy.
    states: of hidden states, "cosine" (DistilBERT) or "squared" (TinyBERT). attention: "scores" (TinyBERT), "relations"
    (MiniLM: attention's distributions and the values' relations, of the last layer) or "relations2" (MiniLM v2: of
    queries, keys and values, cut into relation_heads). layers: which state or attention of the student (0 is the
    embedding, i what leaves block i) is compared with which of the teacher; none: the last ones, and for TinyBERT's
    all, evenly spread. Those of the papers: DistilBERT 5, 2 (of masked tokens) and 1 at T = 2; TinyBERT 1 each; MiniLM
    attention alone.
    """

    soft: float = 1.0
    hard: float = 0.0
    temperature: float = 2.0
    state_kind: Literal["cosine", "squared"] = "cosine"
    states: float = 0.0
    attention_kind: Literal["scores", "relations", "relations2"] = "relations"
    attention: float = 0.0
    layers: tuple[tuple[int, int], ...] = ()
    relation_heads: int = 12

    def __post_init__(self) -> None:
        for name in ("soft", "hard", "states", "attention"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError("a weight is 0 or more", field=name, value=getattr(self, name), remedy="0 for none")
        if not self.soft and not self.states and not self.attention:
            raise UsageError("nothing is learnt from the teacher", field="soft", value=self.soft, remedy="soft: 1.0")
        if not 0 < self.temperature < float("inf"):
            raise UsageError("must be above 0", field="temperature", value=self.temperature, remedy="1 to 4")
        known = {"state_kind": ("cosine", "squared"), "attention_kind": ("scores", "relations", "relations2")}
        for name, kinds in known.items():
            if getattr(self, name) not in kinds:
                raise UsageError("unknown kind", field=name, value=getattr(self, name), remedy=" or ".join(kinds))

    def pairs(self, student_layers: int, teacher_layers: int, every: bool) -> tuple[tuple[int, int], ...]:
        """(student's, teacher's) numbers of states. Raises UsageError for one that is not there."""
        for mine, theirs in self.layers:
            if not 0 <= mine <= student_layers or not 0 <= theirs <= teacher_layers:
                raise UsageError("there is no such layer", field="layers", value=(mine, theirs),
                                 remedy=f"the student has {student_layers}, the teacher {teacher_layers}")  # fmt: skip
        if self.layers:
            return self.layers
        if not every:
            return ((student_layers, teacher_layers),)
        return tuple((i, round(i * teacher_layers / student_layers)) for i in range(student_layers + 1))
