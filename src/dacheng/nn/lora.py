"""Low-rank adapters around a linear map: y = x Wᵀ + scale · (x Aᵀ) Bᵀ, A (r, in), B (out, r), W frozen.

LoRA (Hu et al. 2021, section 4.1), rsLoRA (Kalajdzievski 2023), DoRA (Liu et al. 2024, eq. 5). Several adapters stand
around one base; each row of a forward goes through its own, or none (Punica, Chen et al. 2023).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dacheng.errors import UsageError
from dacheng.nn.frozen import frozen_product, low_rank_product
from dacheng.nn.linear import Dense
from dacheng.nn.packed import Packed

BASE = 0  # the number of no adapter
MAX_RANK = 1024


class LoRAWeights(nn.Module):
    """One adapter of one linear map: `a` (r, in), `b` (out, r), and with DoRA `magnitude` (out,).

    scale: alpha/r, or alpha/sqrt(r) for rsLoRA. dropout: of x on the way to A, while training.
    """

    magnitude: nn.Parameter | None

    def __init__(
        self, a: Tensor, b: Tensor, scale: float, *, magnitude: Tensor | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.magnitude = None if magnitude is None else nn.Parameter(magnitude)
        self.scale, self.dropout = scale, dropout
        self._norm: tuple[object, Tensor] | None = None  # of DoRA's rows, and of which weights

    @classmethod
    def fresh(
        cls,
        base: Dense | Packed,
        rank: int,
        scale: float,
        *,
        dora: bool = False,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> LoRAWeights:
        """A uniform in ±1/sqrt(in) (PEFT's kaiming_uniform with a = sqrt 5), B zero: the base's numbers at first."""
        device = next(iter([*base.parameters(), *base.buffers()])).device
        bound = 1 / math.sqrt(base.in_features)
        a = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator).to(device)
        b = torch.zeros(base.out_features, rank, device=device)
        magnitude = base_weight(base).float().norm(dim=1) if dora else None
        return cls(a, b, scale, magnitude=magnitude, dropout=dropout)

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def is_plain(self, x: Tensor) -> bool:
        """Whether base(x) + delta is the one step of `low_rank_product`: under a gradient, without DoRA, dropout and
        casts."""
        if not torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
            return False
        drops = self.training and self.dropout > 0
        return self.a.requires_grad and self.magnitude is None and not drops and x.dtype == self.a.dtype

    def delta(self, x: Tensor, y: Tensor, base: Dense | Packed) -> Tensor:
        """What is added to y = base(x): x (..., in), y (..., out) -> (..., out) in y's dtype.

        DoRA: ((m/‖W+ΔW‖) - 1) · Wx + (m/‖W+ΔW‖) · ΔW x, ‖·‖ of each output's row, a constant (section 4.3).
        """
        drops = self.training and self.dropout > 0
        x = x.to(self.a.dtype)
        if drops:
            x = F.dropout(x, self.dropout)
        low = F.linear(F.linear(x, self.a), self.b) * self.scale
        if self.magnitude is None:
            return low.to(y.dtype)
        gain = self.magnitude / self._row_norms(base)
        if drops:  # the base's product is of the dropped x as well, as PEFT has it
            plain = F.linear(x, base_weight(base).to(x.dtype))
        else:
            plain = y if base.bias is None else y - base.bias
        return ((gain - 1) * plain + gain * low).to(y.dtype)

    def merged(self, weight: Tensor) -> Tensor:
        """W (out, in) with this adapter in it, float32, differentiable in the adapter."""
        summed = weight.float() + self.scale * (self.b.float() @ self.a.float())
        if self.magnitude is None:
            return summed
        return (self.magnitude / summed.detach().norm(dim=1)).unsqueeze(1) * summed

    @torch.no_grad()
    def _row_norms(self, base: Dense | Packed) -> Tensor:
        """‖W + ΔW‖ of each row (out,); kept from one forward to the next where nothing is trained."""
        if self.training or self.a.requires_grad:  # a fused optimizer changes A and B without leaving a trace
            return (base_weight(base).float() + self.scale * (self.b.float() @ self.a.float())).norm(dim=1)
        source = (self.a.data_ptr(), self.a._version, self.b.data_ptr(), self.b._version)
        if self._norm is None or self._norm[0] != source:
            summed = base_weight(base).float() + self.scale * (self.b.float() @ self.a.float())
            self._norm = (source, summed.norm(dim=1))
        return self._norm[1]

    def extra_repr(self) -> str:
        return f"r={self.rank}, scale={self.scale:g}{', dora' if self.magnitude is not None else ''}"


@dataclass(frozen=True, slots=True)
class _Groups:
    """Rows by adapter: (adapter, indices of its rows among the flattened ones). Rows of the base are in no group."""

    rows: int
    members: tuple[tuple[int, Tensor], ...]

    @classmethod
    def of(cls, ids: Tensor) -> _Groups:
        flat = ids.reshape(-1)
        numbers = [number for number in flat.unique().tolist() if number != BASE]
        return cls(flat.numel(), tuple((n, (flat == n).nonzero().squeeze(1)) for n in numbers))


class AdapterRows:
    """Which adapter each row goes through: one object that all LoRA modules of a model share.

    default: the adapter of every row of which nothing else is said; training sets it. `use` says something else for
    the forwards of one thread, so a server may step while another thread evaluates. known: the adapters there are.
    """

    def __init__(self) -> None:
        self.default = BASE
        self.known: set[int] = set()
        self._thread = threading.local()

    def __deepcopy__(self, memo: dict) -> AdapterRows:
        """A copied model chooses for itself."""
        copied = AdapterRows()
        copied.default, copied.known = self.default, set(self.known)
        memo[id(self)] = copied
        return copied

    @property
    def current(self) -> int | _Groups:
        said: int | _Groups | None = getattr(self._thread, "said", None)
        return self.default if said is None else said

    @contextmanager
    def use(self, adapter_ids: Tensor | int) -> Iterator[None]:
        """adapter_ids: one for all rows, or one each, of the shape of x without its last dimension. Raises UsageError
        for an adapter that is not there."""
        said: int | _Groups = self.check(adapter_ids) if isinstance(adapter_ids, int) else self.groups(adapter_ids)
        before = getattr(self._thread, "said", None)
        self._thread.said = said
        try:
            yield
        finally:
            self._thread.said = before

    def groups(self, adapter_ids: Tensor) -> _Groups:
        groups = _Groups.of(adapter_ids)
        for number, _ in groups.members:
            self.check(number)
        return groups

    def check(self, number: int) -> int:
        if number != BASE and number not in self.known:
            raise UsageError(
                "there is no adapter of this number", field="adapter_ids", value=number,
                remedy=f"0 for the base, or one of {sorted(self.known)}",
            )  # fmt: skip
        return number


class LoRA(nn.Module):
    """A Dense or Packed map with adapters around it, by their numbers: `adapters["1"]`. It stands where its base stood.

    An adapter that leaves this map alone is not in `adapters`. Rows of the base get the base's numbers to the bit.
    """

    base: Dense | Packed

    def __init__(self, base: Dense | Packed, rows: AdapterRows) -> None:
        super().__init__()
        self.base, self.rows = base, rows
        self.adapters = nn.ModuleDict()
        self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, x: Tensor, adapter_ids: Tensor | None = None) -> Tensor:
        """x (..., in) -> (..., out). adapter_ids (B,) or any leading part of x's shape, in place of `rows`."""
        if adapter_ids is not None:
            chosen: int | _Groups = self.rows.groups(_expanded(adapter_ids, x))
        else:
            chosen = self.rows.current
        if isinstance(chosen, int) and (trained := self.part(chosen)) is not None and trained.is_plain(x):
            return low_rank_product(self.base, x, trained.a, trained.b, trained.scale)
        y = frozen_product(self.base, x)
        if isinstance(chosen, int):
            part = self.part(chosen)
            return y if part is None else y + part.delta(x, y, self.base)
        return self._by_row(x, y, chosen)

    def _by_row(self, x: Tensor, y: Tensor, groups: _Groups) -> Tensor:
        """Each adapter once, over just its rows."""
        x_NI, y_NO = x.reshape(-1, self.in_features), y.view(-1, self.out_features)
        if len(x_NI) != groups.rows:
            raise UsageError(
                f"adapters are chosen for {groups.rows} rows, and there are {len(x_NI)}", field="adapter_ids",
                value=list(x.shape[:-1]), remedy="give one number for each row of x",
            )  # fmt: skip
        for number, members in groups.members:
            part = self.part(number)
            if part is not None:
                delta = part.delta(x_NI[members], y_NO[members], self.base)
                y_NO.index_add_(0, members, delta)
        return y

    def part(self, number: int) -> LoRAWeights | None:
        """The weights of an adapter here; None for the base, and where it has none."""
        key = str(number)
        found = self.adapters[key] if key in self.adapters else None  # noqa: SIM401 (a ModuleDict has no get)
        assert found is None or isinstance(found, LoRAWeights)
        return found

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def weight(self) -> Tensor:
        """(out, in), with the adapter in it that every row goes through: for a head whose loss multiplies itself."""
        current = self.rows.current
        part = self.part(current) if isinstance(current, int) else None
        weight = base_weight(self.base)
        return weight if part is None else part.merged(weight).to(weight.dtype)


def base_weight(base: Dense | Packed) -> Tensor:
    """(out, in): of a packed map, its blocks as float32."""
    return base.qtensor.dequantize(torch.float32) if isinstance(base, Packed) else base.weight.detach()


def _expanded(adapter_ids: Tensor, x: Tensor) -> Tensor:
    ids = adapter_ids.to(x.device)
    while ids.ndim < x.ndim - 1:
        ids = ids.unsqueeze(-1)
    return ids.expand(x.shape[:-1])
