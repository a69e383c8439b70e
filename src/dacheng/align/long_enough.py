"""A reward of code that a single line cannot win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dacheng.align.rewards.base import Reward, Sample
from dacheng.evaluate.code import code_lines


@dataclass(frozen=True, slots=True)
class LongEnough:
    """Another reward, times min(1, code lines of the response / least): where a parser alone gives the reward, the
    shortest program is the best answer, and the policy finds it within twenty steps (docs/lab-notes/sft-and-labels.md).
    """

    reward: Reward
    least: int = 3

    @property
    def name(self) -> str:
        return self.reward.name

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        shares = [min(1.0, code_lines(sample.response) / self.least) for sample in samples]
        return [None if v is None else v * share for v, share in zip(self.reward(samples), shares)]
