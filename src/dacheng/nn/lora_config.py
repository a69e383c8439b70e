"""The knobs of a low-rank adapter, and the adapter as a thing of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import nn

from dacheng.errors import UsageError
from dacheng.nn.lora import MAX_RANK, LoRAWeights

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Raises UsageError for values that make no adapter.

    rank, alpha: ΔW = (alpha/rank) · B A; with use_rslora alpha/sqrt(rank). targets: linear maps by the family's names
    (q_proj) or ours (q, attention.q, blocks.0.attention.q), or "all-linear": all of the blocks. use_dora: a learnt
    length for each output. rank_pattern, alpha_pattern: other values for some targets, by the same kinds of name.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, rank in [("rank", self.rank), *((f"rank_pattern[{k}]", v) for k, v in self.rank_pattern.items())]:
            if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
                raise UsageError("no rank", field=name, value=rank, remedy=f"a whole number from 1 to {MAX_RANK}")
        for name, alpha in [
            ("alpha", self.alpha),
            *((f"alpha_pattern[{k}]", v) for k, v in self.alpha_pattern.items()),
        ]:
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 1e6:
                raise UsageError("must be above 0", field=name, value=alpha, remedy="often twice the rank")
        if not 0 <= self.dropout < 1:
            raise UsageError("a share from 0 to 1", field="dropout", value=self.dropout, remedy="0.05, or 0 for none")
        if not self.targets:
            raise UsageError("nothing is adapted", field="targets", value=self.targets, remedy=f'("{ALL_LINEAR}",)')

    def rank_of(self, *names: str) -> int:
        """Of a module that is known by these names."""
        return int(_by_pattern(self.rank_pattern, names, self.rank))

    def scale_of(self, *names: str) -> float:
        alpha, rank = _by_pattern(self.alpha_pattern, names, self.alpha), self.rank_of(*names)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _by_pattern(pattern: dict[str, int] | dict[str, float], names: tuple[str, ...], default: float) -> float:
    return next((value for key, value in pattern.items() if any(named(key, name) for name in names)), default)


def named(target: str, name: str) -> bool:
    """Whether a target means the module `name`: all of its name, or its last parts."""
    return name == target or name.endswith("." + target)


@dataclass(slots=True)
class Adapter:
    """Weights by the names of our modules ("blocks.0.attention.q"). base: the model that it was made for, as its
    directory says. notes: things to show the user."""

    config: LoRAConfig
    parts: dict[str, LoRAWeights]
    base: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for part in self.parts.values() for p in nn.Module.parameters(part))
