"""Zeros while a model trains: more and more of them, or just those that are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from dacheng.compress.prune.magnitude import Scope, magnitude
from dacheng.compress.prune.sparsity import Sparsity
from dacheng.compress.prune.weights import linear_maps, masks_of, put_masks
from dacheng.errors import UsageError
from dacheng.train.callbacks import Callback

if TYPE_CHECKING:
    from dacheng.train.report import StepReport
    from dacheng.train.trainer import Trainer


@dataclass(frozen=True, slots=True)
class CubicSchedule:
    """s_t = s_f + (s_i - s_f)(1 - (t - t₀) / (t₁ - t₀))³ (Zhu & Gupta 2017, eq. 1): fast while there is much that
    nobody misses, slow at the end. begin, end: steps t₀ and t₁; every: steps between two prunings."""

    final: float
    begin: int
    end: int
    every: int = 10
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.final < 1 or self.final == 0:
            raise UsageError("sparsity rises and stays below 1", field="final", value=[self.initial, self.final],
                             remedy="for example initial 0, final 0.5")  # fmt: skip
        if not 0 <= self.begin < self.end or self.every < 1:
            raise UsageError("it begins before it ends", field="end", value=[self.begin, self.end, self.every],
                             remedy="0 <= begin < end, every >= 1")  # fmt: skip

    def at(self, step: int) -> float:
        progress = min(1.0, max(0.0, (step - self.begin) / (self.end - self.begin)))
        return self.final + (self.initial - self.final) * (1 - progress) ** 3

    def is_due(self, step: int) -> bool:
        return step == self.end or (self.begin <= step < self.end and (step - self.begin) % self.every == 0)


class KeepZeros(Callback):
    """After every step, zeros are zeros again. schedule: when more weights become zero, by magnitude within each map
    (Han et al. 2015; None: no more than there are). `masks`: True where a weight lives.

    The masks are in the weights themselves, so a resumed run has them; without a schedule a model that has no zeros is
    an error: there would be nothing to keep.
    """

    every_rank = True

    def __init__(self, schedule: CubicSchedule | None = None, scope: Scope = "layer") -> None:
        self.schedule, self.scope = schedule, scope
        self.masks: dict[str, Tensor] = {}

    def on_start(self, trainer: Trainer) -> None:
        self.masks = masks_of(trainer.model)
        if self.schedule is None and not self.masks:
            raise UsageError("the model has no zeros to keep", field="schedule", remedy="prune it, or give a schedule")

    def on_step_end(self, trainer: Trainer, report: StepReport) -> None:
        step = trainer.state.step
        put_masks(trainer.model, self.masks)
        if self.schedule is not None and self.schedule.is_due(step) and (ratio := self.schedule.at(step)) > 0:
            wanted = Sparsity(ratio)
            self.masks = {  # with row and ties, the zeros there are need not be among the chosen
                name: magnitude(module.weight.detach(), wanted, self.scope) & (module.weight.detach() != 0)
                for name, module in linear_maps(trainer.model).items()
            }
            put_masks(trainer.model, self.masks)
            trainer.publish({"prune/sparsity": ratio})
