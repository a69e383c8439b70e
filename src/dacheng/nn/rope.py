"""Rotary positions (Su et al. 2021, eq. 34), and the ways of stretching them beyond the length of training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dacheng.errors import UsageError

ScalingKind = Literal["linear", "llama3", "yarn", "longrope"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How a model's angles differ from position · theta^(-2i/E).

    linear: positions divided by `factor` (Chen et al. 2023). llama3: low frequencies divided, high ones kept, between
    them a ramp (Llama 3.1). yarn: the same with a ramp over dimensions (Peng et al. 2023, eq. 23), and cos and sin
    multiplied by an attention factor. longrope: each frequency divided by its own number, of which there are two sets,
    for texts up to `original_positions` and for longer ones (Ding et al. 2024). Which set is used is fixed when the
    model is built (`long`): keys in a cache must not change their angles when a text grows.
    """

    kind: ScalingKind
    factor: float = 1.0
    original_positions: int | None = None
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None  # None: what the paper of the kind computes
    truncate: bool = True  # yarn's ramp begins and ends at whole dimensions
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    long: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScalingKind):
            raise UsageError(
                "unknown rope scaling",
                field="kind",
                value=self.kind,
                remedy="one of " + ", ".join(get_args(ScalingKind)),
            )
        if not self.factor >= 1:
            raise UsageError("positions are stretched, not squeezed", field="factor", value=self.factor, remedy="≥ 1")
        if self.kind != "linear" and self.original_positions is None:
            raise UsageError(
                "the length of training is needed", field="original_positions", value=None, remedy="set it, in tokens"
            )

    def scaled(self, frequencies: Tensor, width: int, theta: float) -> Tensor:
        """frequencies theta^(-2i/E), (E/2,) -> those of the stretched positions."""
        if self.kind == "linear":
            return frequencies / self.factor
        if self.kind == "llama3":
            return self._llama3(frequencies)
        if self.kind == "yarn":
            keep = 1 - self._ramp(width, theta, frequencies.device)
            return frequencies / self.factor * (1 - keep) + frequencies * keep
        factors = torch.tensor(self.long_factors if self.long else self.short_factors, device=frequencies.device)
        if factors.shape != frequencies.shape:
            raise UsageError(
                f"longrope needs a factor for each of {len(frequencies)} frequencies",
                field="long_factors" if self.long else "short_factors",
                value=len(factors),
                remedy="copy them from the model's source again",
            )
        return frequencies / factors

    def _llama3(self, frequencies: Tensor) -> Tensor:
        assert self.original_positions is not None
        low, high = self.low_frequency_factor, self.high_frequency_factor
        turns = self.original_positions * frequencies / (2 * math.pi)  # in the length of training
        ramp = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - ramp) * frequencies / self.factor + ramp * frequencies

    def _ramp(self, width: int, theta: float, device: torch.device) -> Tensor:
        """0 for dimensions that turn more than beta_fast times in the length of training, 1 below beta_slow: (E/2,)."""
        assert self.original_positions is not None

        def dimension(turns: float) -> float:
            return width * math.log((self.original_positions or 0) / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        high += 0.001 if high == low else 0
        return ((torch.arange(width // 2, dtype=torch.float32, device=device) - low) / (high - low)).clamp(0, 1)

    @property
    def amplitude(self) -> float:
        """What cos and sin are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.kind == "yarn":
            if self.mscale and self.mscale_all_dim:
                return yarn_mscale(self.factor, self.mscale) / yarn_mscale(self.factor, self.mscale_all_dim)
            return yarn_mscale(self.factor)
        if self.kind == "longrope" and self.factor > 1:
            assert self.original_positions is not None
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_positions))
        return 1.0


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """Peng et al. 2023, eq. 24; `mscale` is DeepSeek's."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


class Rotary(nn.Module):
    """cos and sin of position · frequency, computed as they are asked for: a table of 131,072 positions would be larger
    than many a model. The frequencies are a buffer that is not saved: they follow from the arguments.

    width E: of the rotated part of a head.
    """

    frequencies: Tensor

    def __init__(self, width: int, theta: float, max_positions: int, scaling: RopeScaling | None = None) -> None:
        super().__init__()
        self.width, self.theta, self.max_positions, self.scaling = width, theta, max_positions, scaling
        self.amplitude = 1.0 if scaling is None else scaling.amplitude
        if scaling is not None and scaling.kind == "longrope" and not scaling.long:
            assert scaling.original_positions is not None
            self.max_positions = min(max_positions, scaling.original_positions)
        self.register_buffer("frequencies", self._frequencies(torch.device("cpu")), persistent=False)

    def _frequencies(self, device: torch.device) -> Tensor:
        exponents = torch.arange(0, self.width, 2, dtype=torch.float32, device=device) / self.width
        frequencies = 1.0 / self.theta**exponents
        return frequencies if self.scaling is None else self.scaling.scaled(frequencies, self.width, self.theta)

    def rebuild(self, device: torch.device | str = "cpu") -> None:
        """Computes the frequencies again: for a model that was made on the meta device."""
        self.frequencies = self._frequencies(torch.device("cpu")).to(device)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions (B, T) -> cos, sin (B, 1, T, E/2) float32. Raises IndexError past max_positions (on the CPU: other
        devices would have to wait for the answer)."""
        if positions.device.type == "cpu" and positions.numel() and int(positions.max()) >= self.max_positions:
            raise IndexError(f"position {int(positions.max())} is past the model's {self.max_positions}")
        angles = positions.unsqueeze(-1).float() * self.frequencies
        cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
        return (cos, sin) if self.amplitude == 1.0 else (cos * self.amplitude, sin * self.amplitude)


def rotate(x_BHTE: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Turns pairs by their position's angle: (x_i, x_{i + E/2}), Llama's layout, or, interleaved, (x_2i, x_{2i + 1}),
    the paper's. Dimensions past twice the width of `cos` stay as they are. Computed in the dtype of x."""
    cos, sin = cos.to(x_BHTE.dtype), sin.to(x_BHTE.dtype)
    turned = 2 * cos.shape[-1]
    if turned < x_BHTE.shape[-1]:
        head, tail = x_BHTE[..., :turned], x_BHTE[..., turned:]
        return torch.cat((rotate(head, cos, sin, interleaved), tail), dim=-1)
    if interleaved:
        a, b = x_BHTE[..., 0::2], x_BHTE[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    a, b = x_BHTE.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
