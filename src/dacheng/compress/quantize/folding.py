"""Scaling the inputs of some linear maps down and their columns up, without another operation at run time: whatever
makes the input takes the division in (a norm's gain, the rows of a map before)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dacheng.models.decoder import Block
from dacheng.nn.attention import Attention
from dacheng.nn.linear import Dense
from dacheng.nn.mlp import MLP
from dacheng.nn.norms import LayerNorm, RMSNorm


@dataclass(frozen=True, slots=True)
class Site:
    """`readers` (names in the block) all read what `producer` gives, and nothing else does."""

    producer: nn.Module
    readers: tuple[str, ...]

    @property
    def after_norm(self) -> bool:
        return isinstance(self.producer, RMSNorm | LayerNorm)


def sites_of(block: nn.Module) -> list[Site]:
    """The inputs of a block that can be scaled: of q, k, v and of the MLP behind a norm with a gain, of `down` behind a
    gate, of `o` where every head has its own values."""
    assert isinstance(block, Block)
    found = []
    attention, mlp = block.attention, block.mlp
    pre = not block.norm_of_sum
    if pre and isinstance(attention, Attention) and attention.value_gate is None and _has_gain(block.attention_norm):
        assert block.attention_norm is not None
        found.append(Site(block.attention_norm, ("attention.q", "attention.k", "attention.v")))
    if isinstance(attention, Attention) and attention.heads == attention.kv_heads and attention.value_gate is None:
        found.append(Site(attention.v, ("attention.o",)))
    if isinstance(mlp, MLP):
        readers = ("mlp.up",) if mlp.gate is None else ("mlp.gate", "mlp.up")
        if pre and _has_gain(block.mlp_norm):
            assert block.mlp_norm is not None
            found.append(Site(block.mlp_norm, readers))
        if mlp.gate is not None and mlp.activation != "clamped_swiglu":  # down reads act(gate) · up: linear in up
            found.append(Site(mlp.up, ("mlp.down",)))
    return [site for site in found if all(isinstance(block.get_submodule(name), Dense) for name in site.readers)]


def _has_gain(norm: Any) -> bool:
    return norm is not None and getattr(norm, "weight", None) is not None


@torch.no_grad()
def fold(block: nn.Module, site: Site, scales: Tensor) -> None:
    """Divides the producer's outputs by scales (in,) and multiplies the readers' columns: the same function."""
    producer = site.producer
    if isinstance(producer, RMSNorm):
        assert producer.weight is not None
        if producer.offset:  # the gain is 1 + weight
            producer.weight.copy_((producer.weight + 1.0) / scales - 1.0)
        else:
            producer.weight.div_(scales)
    elif isinstance(producer, LayerNorm):
        for parameter in producer.parameters():
            parameter.div_(scales)
    else:
        assert isinstance(producer, Dense)
        producer.weight.div_(scales[:, None])
        if producer.bias is not None:
            producer.bias.div_(scales)
    for name in site.readers:
        weight = block.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.mul_(scales)
