"""A training step is a list of phases: which loss moves which parameters with which optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dacheng.errors import UsageError
from dacheng.objectives.base import Objective
from dacheng.train.optimizers import NamedParameters, OptimizerConfig, OptimizerSet, build_optimizers

OptimizerFactory = Callable[[NamedParameters], "OptimizerSet | torch.optim.Optimizer"]
Parameters = Sequence[nn.Parameter] | Callable[[nn.Module], Iterable[nn.Parameter]]


@dataclass
class Phase:
    """One update of a step; most trainings have one, a GAN has two.

    parameters: a list, a function of the model that gives one, or None for all trainable ones. optimizer: an
    OptimizerConfig, a function of [(name, parameter)] that gives an OptimizerSet or a torch optimizer, or None for the
    one of the TrainConfig. repeats: updates per step, all on the step's batch.
    """

    objective: Objective
    parameters: Parameters | None = None
    optimizer: OptimizerConfig | OptimizerFactory | None = None
    repeats: int = 1
    name: str = "main"


@dataclass
class BoundPhase:
    """A phase with its parameters found and its optimizer made."""

    name: str
    objective: Objective
    named: list[tuple[str, nn.Parameter]]
    optimizer: OptimizerSet
    repeats: int

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for _, p in self.named]


def bind(phases: Sequence[Phase], model: nn.Module, default: OptimizerConfig) -> list[BoundPhase]:
    """Raises UsageError for no phase, two of one name (names are parts of a checkpoint's keys), nothing to train, or a
    parameter that is not the model's."""
    names = [phase.name for phase in phases]
    if not phases or len(set(names)) != len(names) or any("/" in name for name in names):
        raise UsageError(
            "at least one phase, all of different names without a slash",
            field="phases",
            value=names,
            remedy="name them apart",
        )
    return [_bind(phase, model, default) for phase in phases]


def _bind(phase: Phase, model: nn.Module, default: OptimizerConfig) -> BoundPhase:
    if phase.repeats < 1:
        raise UsageError("must be at least 1", field=f"phases.{phase.name}.repeats", value=phase.repeats, remedy="1")
    chosen = phase.parameters
    found = model.parameters() if chosen is None else chosen(model) if callable(chosen) else chosen
    wanted = {id(p): p for p in found if p.requires_grad}
    named = [(name, p) for name, p in model.named_parameters() if id(p) in wanted]
    if len(named) < len(wanted):
        mine = {id(p) for _, p in named}
        strange = next(p for key, p in wanted.items() if key not in mine)
        raise UsageError(
            "a parameter of the phase is not one of the model's",
            field=f"phases.{phase.name}.parameters",
            value=tuple(strange.shape),
            remedy="register it in the model that the trainer is given",
        )
    if not named:
        raise UsageError(
            "nothing to train", field=f"phases.{phase.name}.parameters", remedy="set requires_grad on some"
        )
    return BoundPhase(phase.name, phase.objective, named, _optimizer(phase, named, default), phase.repeats)


def _optimizer(phase: Phase, named: NamedParameters, default: OptimizerConfig) -> OptimizerSet:
    make = phase.optimizer if phase.optimizer is not None else default
    made: Any = build_optimizers(named, make) if isinstance(make, OptimizerConfig) else make(named)
    if isinstance(made, OptimizerSet):
        return made
    if isinstance(made, torch.optim.Optimizer):
        return OptimizerSet([made], named)
    raise UsageError(
        "an optimizer factory gives an OptimizerSet or a torch optimizer",
        field=f"phases.{phase.name}.optimizer",
        value=type(made).__name__,
        remedy="return build_optimizers(named, config), or torch.optim.SGD([p for _, p in named], lr=…)",
    )
