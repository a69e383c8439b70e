"""What an objective is: counts known from the data alone, and sums whose division by those counts is the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Term(NamedTuple):
    """One part of a loss: `sum` over its elements (a scalar tensor with gradient), to be divided by the global count.

    The trainer's loss is Σ weight · sum / count, the count taken over all micro-batches and ranks of the step. So eight
    micro-batches of one row give the gradient of one micro-batch of eight, whatever was masked where.
    """

    sum: Tensor
    weight: float = 1.0


Metrics = dict[str, tuple[float | Tensor, float]]
"""name -> (sum, count): the trainer adds both up and shows the quotient."""


@dataclass(slots=True)
class StepContext:
    """What an objective may know about the step. `generator` is the "dropout" stream of this step."""

    step: int = 0
    training: bool = True
    generator: Any = None


@runtime_checkable
class Objective(Protocol):
    """A loss. `couples_batch` is True where an element's loss depends on the others of its batch (CLIP, SimCSE): such
    an objective is refused with gradient accumulation unless it has `caches_gradients` set to True."""

    couples_batch: bool

    def counts(self, batch: Any) -> dict[str, float]:
        """The number of elements of each term, from data only; called before any forward."""
        ...

    def __call__(self, model: Any, batch: Any, ctx: StepContext) -> tuple[dict[str, Term], Metrics]: ...
