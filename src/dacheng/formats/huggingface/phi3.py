"""Phi-3 and 3.5 (Abdin et al. 2024), Phi-4-mini: Llama with q, k, v in one matrix, gate and up in another, a window,
and longrope beyond the length of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.llama_like import BLOCK, LLAMA_DEFAULTS, LLAMA_NAMES, LlamaLike
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.huggingface.rope import ORIGINAL, read_rope, write_rope
from dacheng.formats.huggingface.shared_fields import note_own_code
from dacheng.formats.huggingface.windows import one_window, one_window_config
from dacheng.models.traits import DecoderTraits

_QKV, _GATE_UP = BLOCK + "self_attn.qkv_proj.weight", BLOCK + "mlp.gate_up_proj.weight"


class Phi3(LlamaLike):
    model_type = "phi3"
    architecture = "Phi3ForCausalLM"
    names = NameTable(LLAMA_NAMES)
    dropouts = ("attention_dropout", "resid_pdrop", "embd_pdrop")
    defaults = LLAMA_DEFAULTS | {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}

    def own_code(self, fields: Fields) -> None:
        note_own_code(fields)

    def own_traits(self, fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
        scaling = values["rope_scaling"]
        if scaling is not None and scaling.kind != "longrope":
            raise fields.error("names a scaling that this family does not have", "rope_type", scaling.kind, "longrope")
        for name in ("full_attn_mod", "interpolate_factor"):  # of the code that Phi-4-mini was published with
            fields.only(name, (1,), "asks for what this family does not have")
        return one_window(fields, values)

    def fits(self, traits: DecoderTraits) -> bool:
        # transformers counts the factors of longrope by the width that heads have by default
        default_width = traits.head_size == traits.width // traits.heads
        return (traits.rope_scaling is None or default_width) and super().fits(traits)

    def own_config(self, traits: DecoderTraits) -> dict[str, Any]:
        return one_window_config(traits)

    def rope_traits(self, fields: Fields) -> dict[str, Any]:
        return read_rope(fields, default_theta=10000.0, partial=True, default_positions=4096)

    def rope_config(self, traits: DecoderTraits) -> dict[str, Any]:
        config, scaling = write_rope(traits), traits.rope_scaling
        if scaling is None:
            return config | {ORIGINAL: traits.max_positions}
        # transformers 4 takes three entries and no more, and the length and the factor from outside of them.
        older = {name: config["rope_scaling"][name] for name in ("short_factor", "long_factor") if scaling.long_factors}
        exact = scaling.factor == traits.max_positions / (scaling.original_positions or 1)
        if exact and scaling.attention_factor is None:
            config["rope_scaling"] = {"type": "longrope", **older}
        return config | {ORIGINAL: scaling.original_positions}

    def import_tensors(self, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> dict[str, Tensor]:
        rest, keys = dict(tensors), traits.n_kv_heads * traits.head_size
        parts: dict[str, Tensor] = {}
        for i in range(traits.layers):
            q, k, v = rest.pop(_QKV.format(i=i)).split((traits.heads * traits.head_size, keys, keys))
            gate, up = rest.pop(_GATE_UP.format(i=i)).split(traits.mlp_size)
            attention, mlp = f"blocks.{i}.attention.", f"blocks.{i}.mlp."
            parts |= {attention + "q.weight": q, attention + "k.weight": k, attention + "v.weight": v}
            parts |= {mlp + "gate.weight": gate, mlp + "up.weight": up}
        return super().import_tensors(rest, traits) | parts

    def export_tensors(self, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> dict[str, Tensor]:
        rest, fused = dict(tensors), dict[str, Tensor]()
        for i in range(traits.layers):
            qkv = [rest.pop(f"blocks.{i}.attention.{part}.weight") for part in "qkv"]
            gate_up = [rest.pop(f"blocks.{i}.mlp.{part}.weight") for part in ("gate", "up")]
            fused |= {_QKV.format(i=i): torch.cat(qkv), _GATE_UP.format(i=i): torch.cat(gate_up)}
        return super().export_tensors(rest, traits) | fused
