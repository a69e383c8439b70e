"""The position-wise network of a block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dacheng.nn.linear import Dense

# Those of `GATED` multiply by a second projection (Shazeer 2020, eq. 6).
ACTIVATIONS = ("swiglu", "geglu", "geglu_tanh", "clamped_swiglu", "relu2", "relu", "gelu_tanh", "gelu", "silu")
GATED = ("swiglu", "geglu", "geglu_tanh", "clamped_swiglu")
CLAMP, SLOPE = 7.0, 1.702  # of gpt-oss


def activate(name: str, x: Tensor) -> Tensor:
    """The pointwise part of an activation's name ("swiglu" gates with silu, "geglu_tanh" with tanh-gelu)."""
    match name:
        case "swiglu" | "silu":
            return F.silu(x)
        case "geglu_tanh" | "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "geglu" | "gelu":
            return F.gelu(x)
        case "relu":
            return F.relu(x)
        case "relu2":
            return F.relu(x).square()
    raise ValueError(f"unknown activation {name!r}")


def gated(name: str, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) · up; "clamped_swiglu" is gpt-oss's g·sigmoid(1.702 g) · (u + 1) with g ≤ 7 and |u| ≤ 7."""
    if name == "clamped_swiglu":
        gate, up = gate.clamp(max=CLAMP), up.clamp(-CLAMP, CLAMP)
        return gate * torch.sigmoid(SLOPE * gate) * (up + 1)
    return activate(name, gate) * up


class MLP(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) · up(x)) when gated (Shazeer 2020, eq. 5, 6). x (..., D) -> (..., D)."""

    def __init__(self, width: int, hidden: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.gate = Dense(width, hidden, bias=bias) if activation in GATED else None
        self.up = Dense(width, hidden, bias=bias)
        self.down = Dense(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(activate(self.activation, self.up(x)))
        return self.down(gated(self.activation, self.gate(x), self.up(x)))

    @torch.no_grad()
    def reset(self, std: float, residual_std: float, generator: torch.Generator | None) -> None:
        for linear in (self.gate, self.up):
            if linear is not None:
                linear.reset(std, generator)
        self.down.reset(residual_std, generator)
