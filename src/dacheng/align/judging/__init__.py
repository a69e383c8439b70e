"""RLAIF: data from a model's own judgement. Critique, revise, prefer; and how far a judge can be trusted."""

from __future__ import annotations

from dacheng.align.judging.asking import Asker, as_text, fill
from dacheng.align.judging.constitution import PRINCIPLES, Principle, read_principles
from dacheng.align.judging.prefer import (
    JudgeFigures,
    Pair,
    Verdict,
    compare,
    figures,
    preference_records,
    write_records,
)
from dacheng.align.judging.remembered import RememberedModel
from dacheng.align.judging.revise import Revision, revise

__all__ = [
    "PRINCIPLES",
    "Asker",
    "JudgeFigures",
    "Pair",
    "Principle",
    "RememberedModel",
    "Revision",
    "Verdict",
    "as_text",
    "compare",
    "figures",
    "fill",
    "preference_records",
    "read_principles",
    "revise",
    "write_records",
]
