"""Verifiable instructions: "at least 300 words", "no commas", "wrap it in JSON", decided by counting.

The instructions, their names and arguments are those of IFEval (Zhou et al. 2023, arXiv 2311.07911, table 1), so its
data are prompts here. Each verdict equals the authors' code, but for what that takes from large models of language:
sentences are counted by a rule, and a language is told by its script, or not at all (then no verdict).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dacheng.align.rewards.base import RewardError, Sample
from dacheng.align.rewards.fields import wrong_field
from dacheng.align.rewards.instruction_checks import CHECKS
from dacheng.recipes import nearest


@dataclass(frozen=True, kw_only=True)
class InstructionsReward:
    """The share of the instructions that a response follows, or with credit "all" 1 where it follows each.

    In a sample's meta: `instructions`, a list of {"id": "length_constraints:number_words", …arguments}; or IFEval's
    `instruction_id_list` beside `kwargs`. loose: a response also follows an instruction if it does without its first
    line, its last, both, or without asterisks (section 2.2 of the paper). None where there are no instructions, or
    none could be decided; one that can't be decided counts neither way.

    Raises RewardError for an instruction that is not known or lacks an argument.
    """

    name: str = "instructions"
    instructions: str = "instructions"
    credit: Literal["share", "all"] = "share"
    loose: bool = False

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> float | None:
        verdicts = [self._verdict(name, arguments, sample) for name, arguments in self._wanted(sample)]
        decided = [verdict for verdict in verdicts if verdict is not None]
        if not decided:
            return None
        return float(all(decided)) if self.credit == "all" else sum(decided) / len(decided)

    def _wanted(self, sample: Sample) -> list[tuple[str, Mapping[str, Any]]]:
        meta = sample.meta
        if self.instructions in meta:
            listed = meta[self.instructions]
            if not isinstance(listed, list) or not all(
                isinstance(i, dict) and isinstance(i.get("id"), str) for i in listed
            ):
                raise wrong_field(self.name, self.instructions, listed, 'no list of {"id": …}')
            return [(item["id"], {key: v for key, v in item.items() if key != "id"}) for item in listed]
        names, arguments = meta.get("instruction_id_list", []), meta.get("kwargs", [])
        if not isinstance(names, list) or not isinstance(arguments, list) or len(names) != len(arguments):
            raise wrong_field(self.name, "instruction_id_list", names, "not as long as meta.kwargs")
        return list(zip(names, arguments))

    def _verdict(self, name: str, arguments: Mapping[str, Any], sample: Sample) -> bool | None:
        check = CHECKS.get(name.removeprefix("en:"))
        if check is None:
            raise RewardError(
                f"reward {self.name}: no such instruction", field="meta.instructions", value=name,
                remedy=f"did you mean {nearest(name, list(CHECKS))}?",
            )  # fmt: skip
        given = {key: value for key, value in arguments.items() if value is not None}
        verdicts: list[bool | None] = []
        try:
            for text in variants(sample.response) if self.loose else [sample.response]:
                verdicts.append(check(text, given) if text.strip() else False)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise RewardError(
                f"reward {self.name}: instruction {name} lacks an argument or has a wrong one: {error}",
                field="meta.instructions", value=dict(given), remedy="see the arguments in the guide",
            ) from error  # fmt: skip
        return True if True in verdicts else verdicts[0]


def variants(text: str) -> list[str]:
    """The text and its seven loose forms (IFEval's evaluation_main.py)."""
    lines = text.split("\n")
    cuts = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cuts, *(cut.replace("*", "") for cut in cuts)]
