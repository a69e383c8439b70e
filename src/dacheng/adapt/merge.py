"""An adapter in the weights themselves: no cost at inference, and what that rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dacheng.adapt.attach import detach, put, rows_of
from dacheng.adapt.counts import adapted_modules
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.nn.contexts import DenseCausal
from dacheng.nn.linear import Dense
from dacheng.nn.lora import LoRA, base_weight
from dacheng.nn.packed import Packed, PackedEmbedding

PROBE_TOKENS = 32


@dataclass(slots=True)
class Merged:
    """error: largest difference of a logit that merging made on the probe; scale: the largest logit there. notes: what
    else changed. `undo` puts the base and its adapters back, to the bit."""

    model: Decoder
    error: float
    scale: float
    notes: list[str] = field(default_factory=list)
    _kept: dict[str, LoRA] = field(default_factory=dict)

    def undo(self) -> None:
        for name, module in self._kept.items():
            put(self.model, name, module)
        self._kept = {}

    def forget(self) -> None:
        """Lets go of the base's weights: there is no way back, and no second copy in memory."""
        rows = rows_of(self.model)
        self._kept = {}
        rows.known.clear()
        rows.default = 0


@torch.no_grad()
def merge(model: Decoder, number: int | None = None, probe: Tensor | None = None) -> Merged:
    """Puts an adapter (the default one) into the weights: W + scale · B A, with DoRA scaled to its lengths.

    The sum is made in float32 and stored in the weights' dtype. A packed map becomes a float one: to be packed again
    would change answers by far more than the adapter does (peft#2321). probe (B, T): ids on which the difference is
    measured, by default 32 of all over the vocabulary. Raises UsageError when there is no adapter.
    """
    rows = rows_of(model)
    number = rows.check(rows.default if number is None else number)
    kept = adapted_modules(model)
    if not number:
        raise UsageError("there is no adapter to merge", field="adapter", value=number, remedy="name one")
    probe = _probe(model) if probe is None else probe
    with rows.use(number), _exactly(model):  # how kernels round is not what merging changes
        before = _logits(model, probe)
    packed = 0
    for name, module in kept.items():
        part = module.part(number)
        if part is None:
            put(model, name, module.base)
            continue
        packed += isinstance(module.base, Packed)
        put(model, name, _dense(module, part.merged(base_weight(module.base))))
    with _exactly(model):
        error = float((_logits(model, probe) - before).abs().max())
    notes = [f"{packed} packed maps are floats now"] if packed else []
    return Merged(model, error, float(before.abs().max()), notes, kept)


def merge_into(model: Decoder, number: int | None = None) -> Merged:
    """`merge` for good: the adapters are gone and the model is a plain one."""
    merged = merge(model, number)
    merged.forget()
    return merged


@contextmanager
def _exactly(model: Decoder) -> Iterator[None]:
    """Packed maps multiply without rounding x."""
    rounding = [m for m in model.modules() if isinstance(m, Packed | PackedEmbedding) and not m.exact]
    for module in rounding:
        module.exact = True
    try:
        yield
    finally:
        for module in rounding:
            module.exact = False


def _dense(module: LoRA, weight: Tensor) -> Dense:
    base = module.base
    dtype = torch.float32 if isinstance(base, Packed) else base.weight.dtype
    with torch.device("meta"):
        dense = Dense(base.in_features, base.out_features, bias=base.bias is not None)
    dense.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
    if base.bias is not None:
        dense.bias = torch.nn.Parameter(base.bias.detach().clone(), requires_grad=False)
    dense.train(base.training)
    return dense


def _probe(model: Decoder) -> Tensor:
    count = min(PROBE_TOKENS, model.traits.longest_text)
    ids = torch.arange(count) * max(1, model.traits.vocab_size // count) % model.traits.vocab_size
    return ids.unsqueeze(0).to(next(iter([*model.parameters(), *model.buffers()])).device)


def _logits(model: Decoder, ids: Tensor) -> Tensor:
    training = model.training
    model.eval()
    try:
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return model.head(model(ids, positions, DenseCausal()))
    finally:
        model.train(training)


__all__ = ["Merged", "detach", "merge", "merge_into"]
