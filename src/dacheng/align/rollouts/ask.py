"""What a rollout worker is asked for: one answer to one prompt, and how answers are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dacheng.errors import UsageError
from dacheng.protocols import SamplingParams


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is wanted. id: unique in its run. group: asks of one prompt share it. seed: of its own random
    stream, so that an answer does not depend on which worker gives it. meta: goes into the Rollout."""

    id: str
    prompt_ids: tuple[int, ...]
    group: str
    seed: int
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn: from the policy itself, tempered and nothing else. A filter (top-p, top-k, a penalty)
    would make the log-probabilities of the sampler those of another policy than the one that learns.

    max_tokens: of an answer. stop: strings that end one (the text that matched is not part of it, its tokens are).
    max_batch: answers written together. Raises UsageError for a temperature that is not above 0.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    max_batch: int = 64

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UsageError(
                "greedy answers are all the same: there is nothing to compare", field="temperature",
                value=self.temperature, remedy="1.0",
            )  # fmt: skip
        for name in ("max_tokens", "max_batch"):
            if getattr(self, name) < 1:
                raise UsageError("must be at least 1", field=name, value=getattr(self, name), remedy="raise it")

    def params(self, ask: Ask, max_tokens: int | None = None) -> SamplingParams:
        """Of one ask; `max_tokens` where less is left."""
        return SamplingParams(
            max_tokens=self.max_tokens if max_tokens is None else max_tokens, temperature=self.temperature,
            seed=ask.seed, stop=self.stop, logprobs=True, processed_logprobs=True,
        )  # fmt: skip


def shares(asks: Sequence[Ask], parts: int) -> list[list[Ask]]:
    """The asks of each of `parts` workers: whole groups, in order, as even as groups allow. It depends on nothing but
    the asks, so a share that is redone is the same share."""
    groups = list(dict.fromkeys(ask.group for ask in asks))
    part_of = {group: index * parts // len(groups) for index, group in enumerate(groups)}
    return [[ask for ask in asks if part_of[ask.group] == part] for part in range(parts)]
