"""The learning rate over a run, as a factor of its peak: pure functions of the step, so a resume needs no state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from dacheng.errors import UsageError

Kind = Literal["constant", "linear", "cosine", "wsd"]
DecayShape = Literal["linear", "1-sqrt"]


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves. Raises UsageError for values that make no schedule.

    kind: constant | linear | cosine | wsd (warmup, stable, decay). warmup, decay: steps when at least 1, a fraction of
    the run when below 1; `decay` and `decay_shape` are of wsd. final: the factor that the end of the run reaches.
    """

    kind: Kind = "cosine"
    warmup: float = 0.01
    final: float = 0.1
    decay: float = 0.2
    decay_shape: DecayShape = "linear"

    def __post_init__(self) -> None:
        for name, known in (("kind", get_args(Kind)), ("decay_shape", get_args(DecayShape))):
            if getattr(self, name) not in known:
                raise UsageError(
                    "unknown schedule", field=name, value=getattr(self, name), remedy="one of " + ", ".join(known)
                )
        for name in ("warmup", "decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(
                    "must be 0 or more", field=name, value=value, remedy="a fraction below 1, or a number of steps"
                )
        if not 0.0 <= self.final <= 1.0:
            raise UsageError(
                "must lie in [0, 1]", field="final", value=self.final, remedy="0.1 ends at a tenth of the peak"
            )


def factor(config: ScheduleConfig, step: int, total: int) -> float:
    """The factor of the learning rate in step `step` (from 0) of `total`.

    After the warmup, progress runs from 0 (its first step) to 1 (step `total`, which is not taken: the last step still
    learns). wsd stays at 1 until `decay` is left (Hu et al. 2024, MiniCPM, section 4).
    """
    warmup = steps_of(config.warmup, total)
    if step < warmup:
        return warmup_factor(step, warmup)
    if config.kind == "constant":
        return 1.0
    length = steps_of(config.decay, total) if config.kind == "wsd" else total - warmup
    progress = min(1.0, max(0.0, (step - (total - length)) / max(1, length)))
    if config.kind == "cosine":
        return cosine(progress, config.final)
    if config.kind == "wsd" and config.decay_shape == "1-sqrt":
        return one_minus_sqrt(progress, config.final)
    return linear(progress, config.final)


def steps_of(amount: float, total: int) -> int:
    """An amount of steps: itself when at least 1, else that fraction of `total`, rounded."""
    return round(amount) if amount >= 1 else round(amount * total)


def warmup_factor(step: int, warmup: int) -> float:
    """1/warmup at step 0 (a zero step would be wasted), 1 from step warmup - 1 on."""
    return min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0


def linear(progress: float, final: float) -> float:
    """From 1 at progress 0 to `final` at progress 1."""
    return 1.0 + (final - 1.0) * progress


def cosine(progress: float, final: float) -> float:
    """Half a cosine from 1 to `final` (Loshchilov & Hutter 2017, SGDR, eq. 5)."""
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def one_minus_sqrt(progress: float, final: float) -> float:
    """1 - sqrt(progress), the decay that did best after a stable phase (Hägele et al. 2024, section 4)."""
    return final + (1.0 - final) * (1.0 - math.sqrt(progress))
