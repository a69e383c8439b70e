"""What PEFT calls the linear maps of a model: the module names that transformers gives them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dacheng.formats.huggingface.families import family_of_traits
from dacheng.formats.huggingface.family import Family
from dacheng.models.decoder import Decoder
from dacheng.nn.lora import LoRA

# Several of our maps that are one of theirs: template, our parts in the order of its rows, whether head by head.
_FUSED: dict[str, list[tuple[str, tuple[str, ...], bool]]] = {
    "phi3": [
        ("model.layers.{i}.self_attn.qkv_proj", ("attention.q", "attention.k", "attention.v"), False),
        ("model.layers.{i}.mlp.gate_up_proj", ("mlp.gate", "mlp.up"), False),
    ],
    "gpt2": [("transformer.h.{i}.attn.c_attn", ("attention.q", "attention.k", "attention.v"), False)],
    "gpt_neox": [
        ("gpt_neox.layers.{i}.attention.query_key_value", ("attention.q", "attention.k", "attention.v"), True)
    ],
}
_TRANSPOSED = ("gpt2",)  # weights (in, out): PEFT must be told (fan_in_fan_out)


@dataclass(frozen=True, slots=True)
class PeftNames:
    """Of one model. fused: their module -> our modules in the order of its rows."""

    family: Family
    heads: int
    fused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    by_head: bool = False
    _whole: dict[str, str] = field(default_factory=dict)  # ours -> theirs, of those that are in one with others

    @classmethod
    def of(cls, model: Decoder) -> PeftNames:
        """As transformers builds the family that the model was read as, or would be written as."""
        family = family_of_traits(model.traits, model.family)
        fused: dict[str, tuple[str, ...]] = {}
        for template, parts, _ in _FUSED.get(family.model_type, []):
            for i in range(model.traits.layers):
                fused[template.format(i=i)] = tuple(f"blocks.{i}.{part}" for part in parts)
        by_head = any(entry[2] for entry in _FUSED.get(family.model_type, []))
        whole = {part: theirs for theirs, parts in fused.items() for part in parts}
        return cls(family, model.traits.heads, fused, by_head, whole)

    @property
    def transposed(self) -> bool:
        return self.family.model_type in _TRANSPOSED

    def theirs(self, name: str) -> str | None:
        """The module in which our map lies, alone or with others; None where transformers has none."""
        if name in self._whole:
            return self._whole[name]
        found = self.family.names.theirs(f"{name}.weight")
        return None if found is None else found.removesuffix(".weight")

    def ours(self, name: str) -> tuple[str, ...]:
        """Our maps that are their module `name`: several where it is fused, none where it is not known."""
        if name in self.fused:
            return self.fused[name]
        found = self.family.names.ours(f"{name}.weight")
        return () if found is None or found.removesuffix(".weight") in self._whole else (found.removesuffix(".weight"),)

    def rows(self, model: nn.Module, theirs: str) -> list[Tensor]:
        """Of each of our maps, which rows of their module's output it is."""
        sizes = [out_features(model, name) for name in self.ours(theirs)]
        if self.by_head and len(sizes) > 1:
            grid = torch.arange(sum(sizes)).view(self.heads, len(sizes), -1)  # (H, 3, E): all sizes are equal here
            return [grid[:, part].reshape(-1) for part in range(len(sizes))]
        return list(torch.arange(sum(sizes)).split(sizes))


def out_features(model: nn.Module, name: str) -> int:
    module = model.get_submodule(name)
    return int((module.base if isinstance(module, LoRA) else module).out_features)  # type: ignore[union-attr, arg-type]


def has_module(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


PREFIX = "base_model.model."
KEY = re.compile(r"base_model\.model\.([A-Za-z0-9_.]{1,300})\.(lora_A|lora_B|lora_magnitude_vector)(\.weight)?")
