"""The number format of the computation: float32, autocast to bfloat16, or float16 with a scaled loss.

Parameters, their gradients and the optimizer stay in float32 (Micikevicius et al. 2018, sections 3.1 and 3.2).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch

from dacheng.errors import UsageError
from dacheng.machine import Machine

NAMES = ("auto", "fp32", "bf16", "fp16")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class LossScaler:
    """Keeps float16 gradients out of underflow: grows while all is finite, backs off when it is not.

    The policy and the defaults are those of torch.amp.GradScaler; the skip itself is the trainer's, which already looks
    at every gradient's norm.
    """

    scale: float = 65536.0
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    good_steps: int = 0

    def update(self, finite: bool) -> None:
        """Raises nothing; a scale below 1 means that the model itself diverges, which the trainer checks."""
        if not finite:
            self.scale, self.good_steps = self.scale * self.backoff, 0
            return
        self.good_steps += 1
        if self.good_steps == self.interval:
            self.scale, self.good_steps = self.scale * self.growth, 0

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])


@dataclass
class Precision:
    """What `choose` settled on. name: fp32 | bf16 | fp16; scaler: of fp16 alone."""

    name: str
    device: torch.device
    scaler: LossScaler | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return _DTYPES[self.name]

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of a forward."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def choose(name: str, device: str | torch.device = "cpu", machine: Machine | None = None) -> Precision:
    """The precision called `name`; "auto" is bf16 where the machine was measured to be fast at it, else fp32.

    machine: a dacheng.machine.Machine, needed for "auto" alone. Raises UsageError for an unknown name, or for fp16 or
    bf16 that the device cannot differentiate.
    """
    device = torch.device(device)
    if name not in NAMES:
        raise UsageError("unknown precision", field="train.precision", value=name, remedy="one of " + ", ".join(NAMES))
    if name == "auto":
        name = "bf16" if machine is not None and machine.fast_dtype == "bfloat16" else "fp32"
    precision = Precision(name, device, LossScaler() if name == "fp16" else None)
    if name != "fp32":
        _probe(precision)
    return precision


def _probe(precision: Precision) -> None:
    """One tiny forward and backward: an unsupported format fails here, with its name, instead of inside the model."""
    weight = torch.ones(8, 8, device=precision.device, requires_grad=True)
    try:
        with precision.autocast():
            product = torch.ones(2, 8, device=precision.device) @ weight
        product.float().sum().backward()
    except RuntimeError as error:
        raise UsageError(
            f"{precision.device.type} cannot compute in {precision.name}: {str(error).splitlines()[0]}",
            field="train.precision",
            value=precision.name,
            remedy="fp32, which works everywhere",
        ) from error
    if product.dtype != precision.dtype:
        raise UsageError(
            f"autocast on {precision.device.type} computes in {product.dtype} instead",
            field="train.precision",
            value=precision.name,
            remedy="fp32, which works everywhere",
        )
