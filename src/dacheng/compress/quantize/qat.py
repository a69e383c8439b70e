"""Training through the rounding: the forward sees rounded weights, the gradient passes as if they weren't (the
straight-through estimator, Bengio et al. 2013; quantisation-aware training, Jacob et al. 2018, section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dacheng.compress.prune.healing import HealConfig, HealReport, heal
from dacheng.compress.quantize.config import QuantizeConfig, chosen_maps
from dacheng.compress.quantize.model import Quantized, quantize_model
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.nn.linear import Dense
from dacheng.ops.integers import IntTensor, QSpec

if TYPE_CHECKING:
    from dacheng.ledger import Ledger
    from dacheng.train.callbacks import Callback


def straight_through(weight: Tensor, spec: QSpec) -> Tensor:
    """The rounded weights (out, in), whose gradient is that of the weights themselves."""
    rounded = IntTensor.from_float(weight.detach(), spec).dequantize(weight.dtype)
    return weight + (rounded - weight).detach()


class RoundedWeight(nn.Module):
    """A Dense whose weights are rounded anew in every forward, scales included."""

    def __init__(self, base: Dense, spec: QSpec) -> None:
        super().__init__()
        self.base, self.spec = base, spec
        self.in_features, self.out_features = base.in_features, base.out_features

    def forward(self, x: Tensor, adapter_ids: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x, straight_through(self.base.weight, self.spec), self.base.bias)


def round_weights(model: nn.Module, config: QuantizeConfig) -> list[str]:
    """Puts RoundedWeight around the maps that `config` quantises; their names."""
    maps, _ = chosen_maps(model, config)
    for name, module in maps.items():
        assert isinstance(module, Dense)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, RoundedWeight(module, config.spec_of(name)))
    return list(maps)


def unwrap(model: nn.Module) -> None:
    """The Dense maps again, with the weights that were trained."""
    for name, module in list(model.named_modules()):
        if isinstance(module, RoundedWeight):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.base)


def train_quantized(
    model: Decoder,
    config: QuantizeConfig,
    documents: Iterable[Sequence[int]],
    out: Path,
    training: HealConfig,
    *,
    callbacks: Sequence[Callback] = (),
    ledger: Ledger | None = None,
) -> tuple[Quantized, HealReport]:
    """Trains all weights through the rounding (by `heal`, on the one Trainer, resumable in `out`), then rounds them for
    good: what the last forward saw. documents: token ids. Raises UsageError for another method than rtn, and for
    adapters: their sum would have to be rounded again."""
    if config.method != "rtn" or training.how != "full":
        raise UsageError("training goes through rounding to nearest, of all weights", field="method",
                         value=[config.method, training.how], remedy="method rtn, how full")  # fmt: skip
    round_weights(model, config)
    try:
        report = heal(model, documents, out, training, callbacks=callbacks, ledger=ledger)
    finally:
        unwrap(model)
    with torch.no_grad():
        return quantize_model(model, config), report
