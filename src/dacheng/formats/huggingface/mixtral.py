"""Mixtral (Jiang et al. 2024): Mistral with experts in every layer, two a token."""

from __future__ import annotations

from typing import Any, ClassVar

from dacheng.formats.huggingface.experts import PerExpert, read_experts, write_experts
from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.llama_like import BLOCK, LLAMA_DEFAULTS, LLAMA_NAMES
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.huggingface.windows import one_window, one_window_config
from dacheng.formats.typed_values import REQUIRED
from dacheng.models.traits import DecoderTraits

_MOE = "block_sparse_moe."


class Mixtral(PerExpert):
    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    names = NameTable(LLAMA_NAMES | {"blocks.{i}.mlp.router.weight": BLOCK + _MOE + "gate.weight"})
    expert_name = BLOCK + _MOE + "experts.{e}.{part}.weight"
    parts: ClassVar = {"gate": "w1", "up": "w3", "down": "w2"}
    defaults = LLAMA_DEFAULTS | {
        "num_key_value_heads": REQUIRED,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "max_position_embeddings": 4096 * 32,
    }

    def own_traits(self, fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
        fields.understood({"router_jitter_noise": "noise in training"})
        moe = read_experts(fields, values, "num_local_experts", expert_width=values["mlp_width"])
        return one_window(fields, values) | {"moe": moe}

    def own_config(self, traits: DecoderTraits) -> dict[str, Any]:
        assert traits.moe is not None
        config = one_window_config(traits) | write_experts(traits, "num_local_experts")
        return config | {"intermediate_size": traits.moe.expert_width}
