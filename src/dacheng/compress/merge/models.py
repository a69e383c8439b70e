"""Whole models merged: checked to be of one shape, then weight by weight."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dacheng.compress.building import decoder_of
from dacheng.compress.merge import methods
from dacheng.compress.prune.shrink import check_plain
from dacheng.errors import DachengError, UsageError
from dacheng.formats.huggingface.family import resolved
from dacheng.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """method: linear, slerp, task_arithmetic, ties, dare_linear or dare_ties. weights: of the models, in their order;
    null: 1 each. t: of slerp, how far from the first to the second. density: share of a task vector that stays (ties,
    dare). scale: λ on the merged task vector. seed: of dare's choices."""

    method: methods.Method = "linear"
    weights: tuple[float, ...] | None = None
    t: float = 0.5
    density: float = 0.5
    scale: float = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        if self.method not in methods.METHODS:
            raise UsageError("no such method", field="method", value=self.method,
                             remedy="one of " + ", ".join(methods.METHODS))  # fmt: skip
        if not 0 <= self.t <= 1:
            raise UsageError("lies in [0, 1]", field="t", value=self.t, remedy="0.5 is halfway")
        if not 0 < self.density <= 1:
            raise UsageError("lies in (0, 1]", field="density", value=self.density, remedy="for example 0.5")

    def check(self, models: int, has_base: bool) -> tuple[float, ...]:
        """The weights. Raises UsageError for a number of models that the method cannot take."""
        weights = (1.0,) * models if self.weights is None else self.weights
        if len(weights) != models:
            raise UsageError(f"{models} models have as many weights", field="weights", value=list(weights),
                             remedy="one for each, the base has none")  # fmt: skip
        if models < 1:
            raise UsageError("there is nothing to merge", field="models", value=models, remedy="name some")
        if self.method == "slerp" and models != 2:
            raise UsageError("an arc has two ends", field="models", value=models, remedy="give two models, or linear")
        if self.method == "slerp" and self.weights is not None:
            raise UsageError("where on an arc is told by t", field="weights", value=list(self.weights), remedy="t: 0.5")
        if self.method in methods.NEEDS_BASE and not has_base:
            raise UsageError("what was learnt is the difference from a base", field="base", value=None,
                             remedy="name the model that all were tuned from")  # fmt: skip
        return weights


@torch.no_grad()
def merge_models(models: Sequence[Decoder], config: MergeConfig, base: Decoder | None = None) -> Decoder:
    """A new model of the same traits, in float32 arithmetic and the first model's dtypes.

    Raises UsageError for methods that want another number of models or a base, DachengError naming the first weight
    that differs in shape.
    """
    weights = config.check(len(models), base is not None)
    everyone = [*models, *([] if base is None else [base])]
    for model in everyone:
        check_plain(model)
    states = [model.state_dict() for model in everyone]
    for other, model in zip(states[1:], everyone[1:]):
        _check_alike(everyone[0], model, states[0], other)
    merged = {name: merge_tensors(name, states, config, weights, base is not None) for name in states[0]}
    return decoder_of(models[0].traits, merged, models[0]).eval()


def merge_tensors(
    name: str, states: Sequence[dict[str, Tensor]], config: MergeConfig, weights: Sequence[float], has_base: bool
) -> Tensor:
    """The weight `name` of all states (the base's last, where there is one). DARE's choices depend on seed and name,
    not on the order of the weights."""
    tensors = [state[name].float() for state in states]
    dtype, base = states[0][name].dtype, tensors.pop() if has_base else None
    c = config
    match c.method:
        case "linear":
            out = methods.linear(tensors, weights)
        case "slerp":
            out = methods.slerp(tensors[0], tensors[1], c.t)
        case "task_arithmetic":
            assert base is not None
            out = methods.task_arithmetic(base, tensors, weights, c.scale)
        case "ties":
            assert base is not None
            out = methods.ties(base, tensors, weights, c.density, c.scale)
        case _:
            assert base is not None
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode(), c.seed & 0xFFFFFFFF))
            elect = c.method == "dare_ties"
            out = methods.dare(base, tensors, weights, c.density, c.scale, elect=elect, generator=generator)
    return out.to(dtype)


def _check_alike(one: Decoder, other: Decoder, state: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    for name in sorted(state.keys() | others.keys()):
        shapes: list[Any] = [list(s[name].shape) if name in s else None for s in (state, others)]
        if shapes[0] != shapes[1]:
            raise DachengError(
                f"the models do not fit together: {name} is {shapes[0]} in one and {shapes[1]} in another", field=name,
                value=shapes, remedy="merge models that were tuned from one base",
            )  # fmt: skip
    a, b = resolved(one.traits), resolved(other.traits)
    differing = [
        n for n in a.to_dict() if getattr(a, n) != getattr(b, n) and n not in ("max_positions", "initializer_range")
    ]
    if differing:
        raise DachengError(
            "the models compute differently", field=differing[0],
            value=[getattr(a, differing[0]), getattr(b, differing[0])],
            remedy="merge models that were tuned from one base",
        )  # fmt: skip
