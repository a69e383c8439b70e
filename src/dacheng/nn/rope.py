"""Rotary positions (Su et al. 2021, eq. 34), in the half-split layout of Llama: dimension i turns with i + E/2."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """cos and sin of position · theta^(-2i/E), gathered by position.

    The table is a buffer that is not saved: it follows from `head_width` E, `theta` and `max_positions`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_width: int, theta: float, max_positions: int) -> None:
        super().__init__()
        self.head_width, self.theta, self.max_positions = head_width, theta, max_positions
        cos, sin = self._table(torch.device("cpu"))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self.head_width, 2, dtype=torch.float32, device=device) / self.head_width
        angles = torch.outer(
            torch.arange(self.max_positions, dtype=torch.float32, device=device), 1.0 / self.theta**exponents
        )
        return angles.cos(), angles.sin()  # (max_positions, E/2)

    def rebuild(self, device: torch.device | str = "cpu") -> None:
        """Computes the table again: for a model that was made on the meta device."""
        self.cos, self.sin = self._table(torch.device(device))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions (B, T) -> cos, sin (B, 1, T, E/2). Raises IndexError past max_positions."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotate(x_BHTE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x_i, x_{i + E/2}) by its position's angle; computed in the dtype of x."""
    a, b = x_BHTE.chunk(2, dim=-1)
    cos, sin = cos.to(x_BHTE.dtype), sin.to(x_BHTE.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
