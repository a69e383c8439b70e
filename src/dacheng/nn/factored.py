"""A linear map of low rank: two thin products in place of a wide one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from dacheng.errors import DachengError
from dacheng.ops.low_rank import LowRankTensor


class Factored(nn.Module):
    """y = (x Aᵀ) Bᵀ + b with a (r, in), b (out, r): stands where a Dense stands."""

    def __init__(self, weight: LowRankTensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.a, self.b = nn.Parameter(weight.a, requires_grad=False), nn.Parameter(weight.b, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def forward(self, x: Tensor, adapter_ids: Tensor | None = None) -> Tensor:
        return F.linear(F.linear(x, self.a), self.b, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.rank} -> {self.out_features}"


def factor_module(model: nn.Module, name: str, weight: LowRankTensor) -> Factored:
    """Puts a Factored in the place of the Dense `name`; its bias stays. Raises DachengError for another shape, and for
    what is no linear map."""
    old = model.get_submodule(name)
    if not isinstance(old, nn.Linear) or old.weight.shape != weight.shape:
        raise DachengError(
            "no linear map of this shape is there", field=name, value=list(weight.shape),
            remedy="take the config and the weights from the same model",
        )  # fmt: skip
    new = Factored(weight, old.bias)
    new.train(old.training)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)
    return new
