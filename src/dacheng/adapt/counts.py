"""How much of a model is trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dacheng.nn.lora import LoRA
from dacheng.nn.packed import Packed, PackedEmbedding


@dataclass(frozen=True, slots=True)
class Trainable:
    """Numbers of weights: those that are trained, and all of them, the adapters' included."""

    trained: int
    total: int

    def __str__(self) -> str:
        return f"{self.trained:,} of {self.total:,} weights are trained ({self.trained / max(1, self.total):.2%})"


def trainable(model: nn.Module) -> Trainable:
    """A packed weight counts as the numbers it stands for."""
    parameters = list(model.parameters())
    packed = [m for m in model.modules() if isinstance(m, Packed | PackedEmbedding)]
    total = sum(p.numel() for p in parameters) + sum(m.shape[0] * m.shape[1] for m in packed)
    return Trainable(sum(p.numel() for p in parameters if p.requires_grad), total)


def adapted_modules(model: nn.Module) -> dict[str, LoRA]:
    """By name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRA)}
