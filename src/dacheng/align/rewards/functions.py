"""Python functions as rewards, by import path: "my_package.rewards:politeness"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dacheng import recipes
from dacheng.align.rewards.base import FunctionReward, Sample
from dacheng.errors import UsageError

Style = Literal["sample", "batch", "trl"]


@dataclass(frozen=True, kw_only=True)
class NamedFunction:
    """The function that `path` names.

    style: "sample": function(sample) -> float | None. "batch": function(samples) -> list. "trl": as TRL's reward
    functions: function(prompts=[…], completions=[…], **columns of meta) -> list, where a prompt is the conversation and
    a completion [{"role": "assistant", "content": …}] if the samples have messages; a column has None for a sample
    whose meta lacks it. arguments: passed by name to each call. Imports the module: for recipes on this machine only.
    Raises UsageError where there is no such function.
    """

    path: str
    name: str = ""
    style: Style = "sample"
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(recipes.resolve_object(self.path, "rewards.path")):
            raise UsageError("not a function", field="rewards.path", value=self.path)
        if not self.name:
            object.__setattr__(self, "name", self.path.rpartition(":")[2])

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        function: Callable[..., Any] = recipes.resolve_object(self.path, "rewards.path")
        if self.style == "sample":
            return FunctionReward(self.name, lambda sample: function(sample, **self.arguments))(samples)
        if self.style == "batch":
            return function(list(samples), **self.arguments)
        names = dict.fromkeys(key for sample in samples for key in sample.meta)
        columns = {key: [sample.meta.get(key) for sample in samples] for key in names}
        prompts = [sample.prompt if sample.messages is None else sample.messages for sample in samples]
        completions = [
            s.response if s.messages is None else [{"role": "assistant", "content": s.response}] for s in samples
        ]
        return function(prompts=prompts, completions=completions, **{**columns, **self.arguments})
