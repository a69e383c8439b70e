"""Rules on the form of a response: its format, its length, that it came to an end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dacheng.align.rewards.base import Sample
from dacheng.errors import UsageError

THINK_ANSWER = r"\s*<think>(?:(?!</?think>).)*</think>\s*<answer>(?:(?!</?answer>).)*</answer>\s*"
Unit = Literal["tokens", "characters", "words"]


@dataclass(frozen=True, kw_only=True)
class FormatReward:
    """`right` where the response matches `pattern` (Python's re, . takes in line ends), else `wrong`.

    pattern: "think_answer" stands for <think>…</think><answer>…</answer> (DeepSeek-R1, section 2.2.2). where: "whole"
    the pattern is the whole response, "anywhere" a part of it. Raises UsageError for a pattern that is none.
    """

    name: str = "format"
    pattern: str = "think_answer"
    where: Literal["whole", "anywhere"] = "whole"
    right: float = 1.0
    wrong: float = 0.0

    def __post_init__(self) -> None:
        try:
            re.compile(self._source)
        except re.error as error:
            raise UsageError(
                f"no regular expression: {error}", field=f"{self.name}.pattern", value=self.pattern
            ) from None

    @property
    def _source(self) -> str:
        return THINK_ANSWER if self.pattern == "think_answer" else self.pattern

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        expression = re.compile(self._source, re.DOTALL)
        match = expression.fullmatch if self.where == "whole" else expression.search
        return [self.right if match(sample.response) else self.wrong for sample in samples]


@dataclass(frozen=True, kw_only=True)
class LengthReward:
    """0 for a response of a good length, down to -1 for one too long or too short.

    With `maximum` and `soft`: soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13): 0 up to maximum - soft, then
    down in a straight line to -1 at maximum and beyond; soft 0 is a step. With `minimum`: length / minimum - 1 below
    it. unit: tokens of the response as the sampler counted them, characters, or words between white space.
    Raises UsageError where neither bound is given or they cross.
    """

    name: str = "length"
    maximum: int | None = None
    soft: int = 0
    minimum: int = 0
    unit: Unit = "tokens"

    def __post_init__(self) -> None:
        most = self.maximum
        good = (most is not None or self.minimum > 0) and self.minimum >= 0 and self.soft >= 0
        if not good or (most is not None and (most <= 0 or self.minimum > most - self.soft)):
            raise UsageError(
                "no room between the bounds",
                field=f"{self.name}.maximum",
                value=[self.minimum, self.maximum, self.soft],
                remedy="give minimum, maximum or both, with minimum <= maximum - soft",
            )

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [self._one(length(sample, self.unit)) for sample in samples]

    def _one(self, count: int) -> float:
        if count < self.minimum:
            return count / self.minimum - 1.0
        if self.maximum is None or count <= self.maximum - self.soft:
            return 0.0
        if count > self.maximum or self.soft == 0:
            return -1.0
        return (self.maximum - self.soft - count) / self.soft


@dataclass(frozen=True, kw_only=True)
class FinishedReward:
    """`right` where the model ended the response itself, `wrong` where it was cut off; None where that is unknown."""

    name: str = "finished"
    right: float = 1.0
    wrong: float = 0.0

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        known: list[float | None] = []
        for sample in samples:
            reason = sample.finish_reason
            known.append(None if reason is None else self.right if reason == "stop" else self.wrong)
        return known


def length(sample: Sample, unit: Unit) -> int:
    """Of the response. UsageError for tokens where nobody counted them (0 for a text that is not empty)."""
    if unit == "tokens":
        if sample.completion_tokens == 0 and sample.response:
            raise UsageError(
                "the sample does not say how many tokens its response has",
                field="completion_tokens",
                remedy="set it, or use unit: characters or words",
            )
        return sample.completion_tokens
    return len(sample.response) if unit == "characters" else len(sample.response.split())
