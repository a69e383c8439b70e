"""Rewards from a recipe: {"kind": "exact", …} -> a Reward, a list of such with weights -> a RewardMix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from dacheng import recipes
from dacheng.align.rewards.base import Missing, Reward, RewardMix, Sample
from dacheng.errors import UsageError
from dacheng.protocols import LanguageModel

OpenModel = Callable[[str], LanguageModel]

KINDS: dict[str, str] = {
    "exact": "maths:ExactReward",
    "function": "functions:NamedFunction",
    "format": "rules:FormatReward",
    "length": "rules:LengthReward",
    "finished": "rules:FinishedReward",
    "instructions": "instructions:InstructionsReward",
    "ast": "syntax:SyntaxReward",
    "tests": "programs:TestsReward",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """model: a directory, or what open_model takes. The rest: see judge.JudgeReward."""

    model: str
    name: str = "judge"
    mode: str = "choice"
    criteria: str = "A good answer is helpful, correct and to the point."
    template: str | None = None
    low: int = 1
    high: int = 10
    yes: str = "Yes"
    no: str = "No"
    max_tokens: int = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """model: a directory that `do: reward` left. base: where its base model lies now, None: where it lay. bounds and
    empty: see models.ModelReward."""

    model: str
    name: str = "model"
    base: str | None = None
    bounds: tuple[float, float] | None = None
    empty: float | None = None


def reward_from_config(
    config: Mapping[str, Any], *, open_model: OpenModel | None = None, path: str = "rewards"
) -> Reward:
    """The reward that {"kind": …} asks for; the other keys are the fields of its class (KINDS), JudgeConfig or
    ModelConfig. open_model: opens a judge by name, None takes directories on this machine's engine.

    Raises UsageError for an unknown kind or key (with the nearest known), or a value of the wrong type; and what making
    the reward raises (no sandbox, no such function, no such model).
    """
    if not isinstance(config, Mapping):
        raise UsageError("a reward is a section", field=path, value=config, remedy="{kind: exact}")
    values = dict(config)
    kind = values.pop("kind", None)
    known = [*KINDS, "judge", "model"]
    if kind not in known:
        near = recipes.nearest(kind, known)
        raise UsageError(
            "no such kind of reward", field=f"{path}.kind", value=kind,
            remedy=(f"did you mean {near}? " if near else "") + "known: " + ", ".join(known),
        )  # fmt: skip
    if kind == "judge":
        return _judge(recipes.build(JudgeConfig, values, path), open_model, path)
    if kind == "model":
        return _model(recipes.build(ModelConfig, values, path))
    module, _, name = KINDS[kind].partition(":")
    return recipes.build(getattr(import_module(f"dacheng.align.rewards.{module}"), name), values, path)  # type: ignore[no-any-return]


def mix_from_config(
    configs: Sequence[Mapping[str, Any]], *, missing: Missing = "skip", open_model: OpenModel | None = None
) -> RewardMix:
    """A list of sections as reward_from_config takes them, each with `weight` (1 where it is not given)."""
    parts = []
    for number, config in enumerate(configs):
        path = f"rewards[{number}]"
        values = dict(config) if isinstance(config, Mapping) else config
        weight = values.pop("weight", 1.0) if isinstance(values, dict) else 1.0
        parts.append((reward_from_config(values, open_model=open_model, path=path), weight))
    return RewardMix(parts, missing=missing)


def _judge(config: JudgeConfig, open_model: OpenModel | None, path: str) -> Reward:
    from dacheng.align.judging.asking import Asker
    from dacheng.align.rewards.judge import JudgeReward

    if open_model is None:
        asker = Asker.open(config.model, max_tokens=config.max_tokens)
    else:
        asker = Asker(model=open_model(config.model), max_tokens=config.max_tokens)
    fields = {f.name for f in dataclasses.fields(JudgeReward)} - {"asker"}
    if config.mode not in ("rating", "choice"):
        raise UsageError("no such mode", field=f"{path}.mode", value=config.mode, remedy="rating or choice")
    return JudgeReward(asker=asker, **{name: getattr(config, name) for name in fields})


def _model(config: ModelConfig) -> Reward:
    from dacheng.align.preferences.reward_model import RewardModel
    from dacheng.align.rewards.models import ModelReward

    loaded = RewardModel.load(config.model, config.base)

    def score(samples: Sequence[Sample]) -> list[float]:
        return loaded.scores([_conversation(sample) for sample in samples])

    return ModelReward(score=score, name=config.name, bounds=config.bounds, empty=config.empty)


def _conversation(sample: Sample) -> list[dict[str, Any]]:
    before = list(sample.messages) if sample.messages else [{"role": "user", "content": sample.prompt}]
    return [*before, {"role": "assistant", "content": sample.response}]
