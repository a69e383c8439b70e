"""GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023): layer norms with biases, a quarter of each head
rotated, attention and mlp side by side, q, k and v in one matrix head by head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.llama_like import LLAMA_DEFAULTS, PLAIN_ACTIVATIONS, LlamaLike
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.huggingface.rope import read_rope, write_rope
from dacheng.models.traits import DecoderTraits

_BLOCK = "gpt_neox.layers.{i}."
_FUSED = _BLOCK + "attention.query_key_value."


class GPTNeoX(LlamaLike):
    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    derived = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")  # stored by old converters
    heads_divide_width = True
    activations = PLAIN_ACTIVATIONS
    default_activation = "gelu"
    eps_field = "layer_norm_eps"
    dropouts = ("attention_dropout", "hidden_dropout")
    defaults = LLAMA_DEFAULTS | {"rms_norm_eps": 1e-5}
    fixed: ClassVar = {"norm": "layer", "mlp_bias": True}
    flags: ClassVar = {"attention_bias": True}
    names = NameTable(
        {"embed.weight": "gpt_neox.embed_in.weight", "lm_head.weight": "embed_out.weight"}
        | {f"norm.{kind}": f"gpt_neox.final_layer_norm.{kind}" for kind in ("weight", "bias")}
        | {
            f"blocks.{{i}}.{ours}.{kind}": f"{_BLOCK}{theirs}.{kind}"
            for ours, theirs in {
                "attention_norm": "input_layernorm",
                "attention.o": "attention.dense",
                "mlp_norm": "post_attention_layernorm",
                "mlp.up": "mlp.dense_h_to_4h",
                "mlp.down": "mlp.dense_4h_to_h",
            }.items()
            for kind in ("weight", "bias")
        }
    )

    def own_traits(self, fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
        fields.understood({"classifier_dropout": "of a head for classification", "is_decoder": "it is one"})
        heads = values["heads"]
        for name, found, expected in (
            ("num_key_value_heads", values["kv_heads"], heads),
            ("head_dim", values["head_width"], values["width"] // heads),
        ):
            if found not in (None, expected):
                raise fields.error(f"is not the {expected} that this family always has", name, found)
        parallel = fields.boolean("use_parallel_residual", True)
        return super().own_traits(fields, values) | {"parallel_branches": parallel}

    def from_traits(self, traits: DecoderTraits) -> dict[str, Any]:
        config = super().from_traits(traits)
        return {name: value for name, value in config.items() if name not in ("num_key_value_heads", "head_dim")}

    def own_config(self, traits: DecoderTraits) -> dict[str, Any]:
        return {"use_parallel_residual": traits.parallel_branches}

    def rope_traits(self, fields: Fields) -> dict[str, Any]:
        return read_rope(
            fields,
            default_theta=10000.0,
            default_fraction=0.25,
            partial=True,
            theta_field="rotary_emb_base",
            fraction_field="rotary_pct",
        )

    def rope_config(self, traits: DecoderTraits) -> dict[str, Any]:
        config = write_rope(traits)
        config["rope_parameters"]["partial_rotary_factor"] = traits.rope_fraction
        del config["rope_theta"]
        config.pop("partial_rotary_factor", None)
        return config | {"rotary_emb_base": traits.rope_theta, "rotary_pct": traits.rope_fraction}

    def stored_tensors(self, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> dict[str, Tensor]:
        """transformers 5 calls the head lm_head while it is in memory."""
        renamed = {"lm_head.weight": "embed_out.weight"}
        return {renamed.get(name, name): tensor for name, tensor in tensors.items()}

    def import_tensors(self, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> dict[str, Tensor]:
        rest, parts = dict(tensors), {}
        for i, kind in _fused(traits):
            by_head = rest.pop((_FUSED + kind).format(i=i)).unflatten(0, (traits.heads, 3, -1))  # (H, 3, E, ...)
            for part, tensor in zip("qkv", by_head.unbind(1)):
                parts[f"blocks.{i}.attention.{part}.{kind}"] = tensor.flatten(0, 1).contiguous()
        return super().import_tensors(rest, traits) | parts

    def export_tensors(self, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> dict[str, Tensor]:
        rest, fused = dict(tensors), {}
        for i, kind in _fused(traits):
            qkv = [rest.pop(f"blocks.{i}.attention.{part}.{kind}") for part in "qkv"]
            by_head = torch.stack([tensor.unflatten(0, (traits.heads, -1)) for tensor in qkv], dim=1)
            fused[(_FUSED + kind).format(i=i)] = by_head.flatten(0, 2)
        return super().export_tensors(rest, traits) | fused


def _fused(traits: DecoderTraits) -> list[tuple[int, str]]:
    kinds = ("weight", "bias") if traits.attention_bias else ("weight",)
    return [(i, kind) for i in range(traits.layers) for kind in kinds]
