"""A trained reward model as a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dacheng.align.rewards.base import Sample

Scorer = Callable[[Sequence[Sample]], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class ModelReward:
    """What a reward model says of prompt and response. score: samples -> one number each (larger is better).

    bounds: values are held within (low, high), as a policy finds the regions where a reward model is wrong and large
    (Gao et al. 2022, arXiv 2210.10760). empty: the reward of an empty response, None to ask the model about it too.
    """

    score: Scorer
    name: str = "model"
    bounds: tuple[float, float] | None = None
    empty: float | None = None

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        asked = [sample for sample in samples if sample.response.strip() or self.empty is None]
        scores = iter(self.score(asked) if asked else [])
        values: list[float | None] = []
        for sample in samples:
            if not sample.response.strip() and self.empty is not None:
                values.append(self.empty)
                continue
            value = float(next(scores))
            if self.bounds is not None and value == value:  # NaN stays one, to be refused
                value = min(max(value, self.bounds[0]), self.bounds[1])
            values.append(value)
        return values
