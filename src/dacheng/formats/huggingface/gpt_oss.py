"""gpt-oss (2025): attention with sinks, a window in every second layer, yarn positions, and experts with biases and a
clamped activation in all layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dacheng.formats.huggingface.experts import read_experts, write_experts
from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.llama_like import BLOCK, LLAMA_DEFAULTS, LLAMA_NAMES, LlamaLike
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.huggingface.patterns import layer_types, read_layer_types
from dacheng.formats.typed_values import REQUIRED
from dacheng.models.traits import DecoderTraits
from dacheng.nn.mlp import CLAMP, SLOPE

_EXPERTS = BLOCK + "mlp.experts."


class GptOss(LlamaLike):
    model_type = "gpt_oss"
    architecture = "GptOssForCausalLM"
    names = NameTable(
        LLAMA_NAMES
        | {"blocks.{i}.attention.sinks": BLOCK + "self_attn.sinks"}
        | {f"blocks.{{i}}.mlp.router.{kind}": f"{BLOCK}mlp.router.{kind}" for kind in ("weight", "bias")}
        | {"blocks.{i}.mlp.experts.down_bias": _EXPERTS + "down_proj_bias"}
    )
    needs = ("moe",)
    activations: ClassVar = {"silu": "clamped_swiglu"}
    defaults = LLAMA_DEFAULTS | {
        "num_key_value_heads": REQUIRED,
        "head_dim": REQUIRED,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "max_position_embeddings": 131072,
    }
    fixed: ClassVar = {"attention_sinks": True}
    flags: ClassVar = {"attention_bias": True}

    def rope_traits(self, fields: Fields) -> dict[str, Any]:
        if fields.get("rope_parameters") is None and fields.get("rope_scaling") is None:
            fields.get("rope_parameters", REQUIRED)  # transformers would take yarn's of the published models
        return super().rope_traits(fields)

    def own_traits(self, fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
        fields.only("swiglu_limit", (CLAMP, int(CLAMP)), "is another clamp than the one that is built")
        fields.only("swiglu_alpha", (SLOPE,), "is another slope than the one that is built")
        fields.understood({"initial_context_length": "the rotary scaling says it too"})
        moe = read_experts(
            fields, values, "num_local_experts", expert_width=values["mlp_width"], router_bias=True, expert_bias=True
        )
        fields.only("experts_per_token", (moe.experts_per_token,), "is not num_experts_per_tok")
        window = fields.integer("sliding_window", None if fields.given("sliding_window") else 128)
        return {"moe": moe} | read_layer_types(fields, values["layers"], window, "SL")

    def own_config(self, traits: DecoderTraits) -> dict[str, Any]:
        assert traits.moe is not None
        return write_experts(traits, "num_local_experts") | {
            "intermediate_size": traits.moe.expert_width,
            "swiglu_limit": CLAMP,
            "sliding_window": traits.window,
            "layer_types": layer_types(traits),
        }

    def import_tensors(self, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> dict[str, Tensor]:
        """Matrices (N, in, out) with gate and up alternating -> (N, out, in) each by itself."""
        rest, parts = dict(tensors), {}
        for i in range(traits.layers):
            theirs, ours = _EXPERTS.format(i=i), f"blocks.{i}.mlp.experts."
            both, bias = rest.pop(theirs + "gate_up_proj"), rest.pop(theirs + "gate_up_proj_bias")
            for offset, part in enumerate(("gate", "up")):
                parts[ours + part] = both[..., offset::2].transpose(1, 2).contiguous()
                parts[f"{ours}{part}_bias"] = bias[:, offset::2].contiguous()
            parts[ours + "down"] = rest.pop(theirs + "down_proj").transpose(1, 2).contiguous()
        return super().import_tensors(rest, traits) | parts

    def export_tensors(self, tensors: Mapping[str, Tensor], traits: DecoderTraits) -> dict[str, Tensor]:
        rest, fused = dict(tensors), {}
        for i in range(traits.layers):
            theirs, ours = _EXPERTS.format(i=i), f"blocks.{i}.mlp.experts."
            both = [rest.pop(ours + part).transpose(1, 2) for part in ("gate", "up")]  # (N, D, F)
            biases = [rest.pop(f"{ours}{part}_bias") for part in ("gate", "up")]  # (N, F)
            fused[theirs + "gate_up_proj"] = torch.stack(both, dim=-1).flatten(-2)
            fused[theirs + "gate_up_proj_bias"] = torch.stack(biases, dim=-1).flatten(-2)
            fused[theirs + "down_proj"] = rest.pop(ours + "down").transpose(1, 2).contiguous()
        return super().export_tensors(rest, traits) | fused
