"""Mixtures of experts in config.json, and their weights, which files hold one by one and we hold stacked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.llama_like import BLOCK, LlamaLike
from dacheng.models.traits import DecoderTraits
from dacheng.nn.moe import MoETraits

MAX_EXPERTS = 2**12
MAX_NETWORKS = 2**16  # experts of all layers: each is three tensors to check before anything is read
UNDERSTOOD = {
    "output_router_logits": "what the writer's library returns beside the logits",
    "router_aux_loss_coef": "of that library's loss in training, which pools the layers; ours is aux_loss_alpha",
    "seq_aux": "aux_loss_alpha's loss is taken text by text",
    "ep_size": "how experts were spread over devices",
}
_STACKED = re.compile(r"blocks\.([0-9]+)\.mlp\.experts\.(gate|up|down)")


class PerExpert(LlamaLike):
    """A family with a stored matrix for each expert. `expert_name`: of layer i, expert e, and a name from `parts`."""

    needs: ClassVar[tuple[str, ...]] = ("moe",)
    expert_name: ClassVar[str] = BLOCK + "mlp.experts.{e}.{part}.weight"
    parts: ClassVar[Mapping[str, str]] = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}

    def import_tensors(self, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> dict[str, Tensor]:
        assert traits.moe is not None
        rest, stacked = dict(tensors), {}
        for i in filter(traits.is_moe, range(traits.layers)):
            for ours, part in self.parts.items():
                names = [self.expert_name.format(i=i, e=e, part=part) for e in range(traits.moe.experts)]
                stacked[f"blocks.{i}.mlp.experts.{ours}"] = torch.stack([rest.pop(name) for name in names])
        return super().import_tensors(rest, traits) | stacked

    def export_tensors(self, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> dict[str, Tensor]:
        rest, single = {}, {}
        for name, tensor in tensors.items():
            found = _STACKED.fullmatch(name)
            if found is None:
                rest[name] = tensor
                continue
            i, part = found[1], self.parts[found[2]]
            for e, one in enumerate(tensor.unbind()):
                single[self.expert_name.format(i=i, e=e, part=part)] = one
        return super().export_tensors(rest, traits) | single


def read_experts(fields: Fields, values: Mapping[str, Any], counts: str, **own: Any) -> MoETraits:
    """`counts`: the field with the number of experts. `own`: traits that the family reads itself or always has."""
    fields.understood(UNDERSTOOD)
    if fields.get(counts) is None and fields.get("num_local_experts") is not None:
        counts = "num_local_experts"  # what transformers 5 calls it in all families
    experts = fields.integer(counts, maximum=MAX_EXPERTS)
    if experts * values["layers"] > MAX_NETWORKS:
        raise fields.error(f"times the number of layers is more than {MAX_NETWORKS}", counts, experts)
    return MoETraits(
        experts=experts,
        experts_per_token=fields.integer("num_experts_per_tok", maximum=experts),
        balance_loss=fields.number("aux_loss_alpha", 0.0, or_zero=True),
        router_z_loss=fields.number("router_z_loss_coef", 0.0, or_zero=True),
        **own,
    )


def write_experts(traits: DecoderTraits, counts: str) -> dict[str, Any]:
    moe = traits.moe
    assert moe is not None
    losses = {"aux_loss_alpha": moe.balance_loss, "router_z_loss_coef": moe.router_z_loss}
    return {counts: moe.experts, "num_experts_per_tok": moe.experts_per_token} | {
        name: value for name, value in losses.items() if value
    }
