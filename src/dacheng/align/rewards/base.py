"""What a reward is: a number for each sample, or None where it cannot say; and the weighted sum of several.

A reward's answer is checked before anyone uses it: as many values as samples, each a finite number or None. What breaks
that is refused with an error that names the reward and the sample, because a NaN that reaches the advantages destroys
the policy in one step and shows only much later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, SupportsFloat, runtime_checkable

from dacheng.errors import DachengError, UsageError

Missing = Literal["skip", "drop"]
_SHOWN = 60  # characters of a response shown in an error


class RewardError(DachengError):
    """A reward raised, or returned what is no reward. The message names the reward, the sample and what it said."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One response to judge.

    prompt: the text that was continued ("" where there are messages alone). messages: the conversation before the
    response. response: the text, without special tokens. meta: what the prompt's record carries (answer, tests, …).
    finish_reason: "stop" | "length" | … of the engine, None where unknown. completion_tokens: tokens of the response,
    tokens of tools not counted; 0 where unknown.
    """

    prompt: str
    messages: list[dict[str, Any]] | None = None
    response: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    completion_tokens: int = 0


@runtime_checkable
class Reward(Protocol):
    """A name and a call. None: the reward does not apply to the sample or cannot say; it is counted and left out.

    A reward must not keep state between calls that changes its answers: a resumed run does not ask again.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]: ...


@dataclass(frozen=True, slots=True)
class Judged:
    """What a mix says of one sample. total: Σ weight · part, None where nothing could be said. parts: reward's name ->
    its own value before weighting; a reward that could not say is not in it."""

    total: float | None
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FunctionReward:
    """A Python function of one sample as a reward. For a function of a batch, write a class with `name` and call."""

    name: str
    function: Callable[[Sample], float | None]

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        values: list[float | None] = []
        for index, sample in enumerate(samples):
            try:
                values.append(self.function(sample))
            except DachengError:
                raise
            except Exception as error:
                raise _raised(self.name, error, sample, index) from error
        return values


class RewardMix:
    """Weighted sum of rewards: `RewardMix([(reward, weight), …])(samples) -> list[Judged]`.

    missing: what becomes of a sample of which one reward says None and another does not. "skip": the others' sum (TRL's
    nansum: rewards of different tasks in one mix). "drop": its total is None (every part is needed).

    Raises UsageError for no rewards, two of one name or a weight that is not finite; RewardError where a reward raises
    or returns a wrong number of values, NaN, an infinity or something that is no number.
    """

    def __init__(self, rewards: Sequence[tuple[Reward, float]], *, missing: Missing = "skip") -> None:
        names = [reward.name for reward, _ in rewards]
        if not rewards:
            raise UsageError("a mix of no rewards", field="rewards", remedy="name at least one, such as {kind: exact}")
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise UsageError(
                "two rewards have one name", field="rewards.name", value=double, remedy="give one a `name:` of its own"
            )
        for reward, weight in rewards:
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise UsageError("a weight is a finite number", field=f"rewards.{reward.name}.weight", value=weight)
        self.rewards = [(reward, float(weight)) for reward, weight in rewards]
        self.missing = missing

    @property
    def names(self) -> list[str]:
        return [reward.name for reward, _ in self.rewards]

    def __call__(self, samples: Sequence[Sample]) -> list[Judged]:
        """One Judged a sample, in order. Every reward sees all samples at once, so that it can work in batches."""
        columns = [(reward.name, weight, ask(reward, samples)) for reward, weight in self.rewards]
        judged = []
        for row in range(len(samples)):
            parts = {name: value for name, _, values in columns if (value := values[row]) is not None}
            said = len(parts) == len(columns) or (parts and self.missing == "skip")
            total = math.fsum(weight * parts[name] for name, weight, _ in columns if name in parts) if said else None
            judged.append(Judged(total, parts))
        return judged


def ask(reward: Reward, samples: Sequence[Sample]) -> list[float | None]:
    """The reward's values, checked: see RewardMix for what is refused. A reward is not called for no samples."""
    if not samples:
        return []
    try:
        values = reward(samples)
    except DachengError:
        raise
    except Exception as error:
        raise _raised(reward.name, error) from error
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise RewardError(
            f"reward {reward.name} did not return a list",
            field=f"rewards.{reward.name}",
            value=type(values).__name__,
            remedy="return one number or None for each sample, in order",
        )
    if len(values) != len(samples):
        raise RewardError(
            f"reward {reward.name} returned {len(values)} values for {len(samples)} samples",
            field=f"rewards.{reward.name}",
            value=len(values),
            remedy="return one number or None for each sample, in order",
        )
    return [_number(reward.name, value, samples[row], row) for row, value in enumerate(values)]


def _number(name: str, value: object, sample: Sample, row: int) -> float | None:
    if value is None:
        return None
    # str is refused although float() reads it: a reward that returns text has a bug that this would hide
    number = None
    if not isinstance(value, (str, bytes, complex)) and isinstance(value, SupportsFloat):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several values
            number = None
    if number is not None and math.isfinite(number):
        return number
    raise RewardError(
        f"reward {name} returned {'no finite number' if number is not None else 'no number'} for {_shown(sample, row)}",
        field=f"rewards.{name}",
        value=value,
        remedy="return a finite number, or None where the reward cannot say",
    )


def _raised(name: str, error: Exception, sample: Sample | None = None, row: int = 0) -> RewardError:
    where = f" on {_shown(sample, row)}" if sample is not None else ""
    return RewardError(
        f"reward {name} raised {type(error).__name__}: {error}{where}",
        field=f"rewards.{name}",
        remedy="mend the reward, or return None where it cannot say",
    )


def _shown(sample: Sample, row: int) -> str:
    label = f" (id {sample.meta['id']})" if "id" in sample.meta else ""
    text = sample.response if len(sample.response) <= _SHOWN else sample.response[:_SHOWN] + "…"
    return f"sample {row}{label}, response {text!r}"
