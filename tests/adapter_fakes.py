"""Adapters that say something: every matrix drawn."""

from __future__ import annotations

import torch

from dacheng.adapt import Adapter, LoRAConfig
from dacheng.adapt.attach import targeted
from dacheng.formats.peft.names import PeftNames
from dacheng.nn.lora import LoRA, LoRAWeights


def drawn(model, seed: int = 0, std: float = 0.15, **settings) -> Adapter:
    """For `model`, which is not touched; logits differ by whole units from the base's."""
    config = LoRAConfig(**{"rank": 4, "alpha": 8.0} | settings)
    generator = torch.Generator().manual_seed(seed)
    names = PeftNames.of(model)
    parts = {}
    for name in targeted(model, config, names):
        module = model.get_submodule(name)
        part = LoRAWeights.fresh(
            module.base if isinstance(module, LoRA) else module,
            config.rank_of(name),
            config.scale_of(name),
            dora=config.use_dora,
            dropout=config.dropout,
            generator=generator,
        )
        with torch.no_grad():
            part.b.normal_(0.0, std, generator=generator)
            if part.magnitude is not None:
                part.magnitude.mul_(1 + 0.2 * torch.randn(part.magnitude.shape, generator=generator))
        parts[name] = part
    return Adapter(config, parts)
