"""A mixture of experts out of a dense decoder (Komatsuzaki et al. 2022, "Sparse upcycling", arXiv 2212.05055): every
expert begins as a copy of the dense network, and the router as noise."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dacheng.compress.building import decoder_of
from dacheng.compress.prune.shrink import check_plain
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.nn.moe import MoETraits

_PARTS = ("gate", "up", "down")


@torch.no_grad()
def upcycle(
    model: Decoder,
    experts: int = 8,
    per_token: int = 2,
    *,
    pattern: str = "M",
    noise: float = 0.0,
    router_std: float = 0.02,
    balance_loss: float = 0.01,
    seed: int = 0,
) -> Decoder:
    """A new model whose layers of `pattern` (M: experts, D: dense, repeated) have `experts` copies of their network, of
    which a token goes through `per_token`. Their weights sum to 1, so at step 0 it computes what the dense one does.

    noise: deviation of what is added to each copy, relative to that of its matrix; 0 keeps the equality, and the
    experts grow apart by what is sent to them. balance_loss: the trait of the same name, for the training to come.
    Raises UsageError for a model that has experts already, and for more experts a token than there are.
    """
    check_plain(model)
    t = model.traits
    if t.moe is not None:
        raise UsageError("the model has experts already", field="model", value=t.moe.experts, remedy="name a dense one")
    if not 1 <= per_token <= experts or experts < 2:
        raise UsageError("a token goes through one or more of them", field="per_token", value=[per_token, experts],
                         remedy="for example 2 of 8")  # fmt: skip
    moe = MoETraits(
        experts=experts, experts_per_token=per_token, expert_width=t.mlp_size, pattern=pattern,
        expert_bias=t.mlp_bias, balance_loss=balance_loss,
    )  # fmt: skip
    traits = replace(t, moe=moe, mlp_width=t.mlp_size).validate()
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        layer, part = _mlp_part(name)
        if layer is None or not traits.is_moe(layer):
            state[name] = tensor.clone()
            continue
        kind, _, what = part.partition(".")
        copies = tensor.unsqueeze(0).repeat(experts, *[1] * tensor.ndim)
        if noise and what == "weight":
            copies += noise * tensor.float().std() * torch.randn(copies.shape, generator=generator)
        stored = kind if what == "weight" else f"{kind}_bias"
        state[f"blocks.{layer}.mlp.experts.{stored}"] = copies
    for layer in (i for i in range(t.layers) if traits.is_moe(i)):
        router = torch.randn(experts, t.width, generator=generator) * router_std
        state[f"blocks.{layer}.mlp.router.weight"] = router.to(model.embed.weight)
    return decoder_of(traits, state, model)


def _mlp_part(name: str) -> tuple[int | None, str]:
    """(layer, "up.weight") of a dense network's weight; (None, "") of any other."""
    parts = name.split(".", 3)
    if len(parts) == 4 and parts[0] == "blocks" and parts[2] == "mlp" and parts[3].startswith(_PARTS):
        return int(parts[1]), parts[3]
    return None, ""
