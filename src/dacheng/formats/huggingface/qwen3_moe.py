"""Qwen3's mixtures of experts (Yang et al. 2025): Qwen3 with experts in all layers, or in all but some."""

from __future__ import annotations

from typing import Any, ClassVar

from dacheng.formats.huggingface.experts import PerExpert, read_experts, write_experts
from dacheng.formats.huggingface.fields import Fields
from dacheng.formats.huggingface.llama_like import BLOCK, LLAMA_NAMES, QK_NORM_NAMES
from dacheng.formats.huggingface.names import NameTable
from dacheng.formats.huggingface.qwen3 import Qwen3
from dacheng.formats.huggingface.windows import one_window_config, switched_window
from dacheng.models.traits import DecoderTraits


class Qwen3Moe(PerExpert):
    model_type = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    names = NameTable(LLAMA_NAMES | QK_NORM_NAMES | {"blocks.{i}.mlp.router.weight": BLOCK + "mlp.gate.weight"})
    defaults = Qwen3.defaults
    fixed = Qwen3.fixed
    flags: ClassVar = {"attention_bias": False}

    def own_traits(self, fields: Fields, values: dict[str, Any]) -> dict[str, Any]:
        layers, window = values["layers"], switched_window(fields)
        if window is None:
            fields.get("max_window_layers")  # off
        else:  # with a window, transformers 5 has it in all layers, and others may count
            fields.only("max_window_layers", (0,), "is read differently by different libraries")
        step = fields.integer("decoder_sparse_step", 1)
        dense = fields.get("mlp_only_layers", [])
        if not isinstance(dense, list) or not all(type(i) is int and 0 <= i < layers for i in dense):
            raise fields.error("must be a list of layers", "mlp_only_layers", dense)
        pattern = "".join("DM"[i not in set(dense) and (i + 1) % step == 0] for i in range(layers))
        moe = read_experts(
            fields,
            values,
            "num_experts",
            expert_width=fields.integer("moe_intermediate_size"),
            normalize=fields.boolean("norm_topk_prob", False),
            pattern=pattern,
        )
        return {"window": window, "window_pattern": "L" if window is None else "S", "moe": moe}

    def own_config(self, traits: DecoderTraits) -> dict[str, Any]:
        assert traits.moe is not None
        return (
            write_experts(traits, "num_experts")
            | {
                "moe_intermediate_size": traits.moe.expert_width,
                "norm_topk_prob": traits.moe.normalize,
                "decoder_sparse_step": 1,
                "mlp_only_layers": [i for i in range(traits.layers) if not traits.is_moe(i)],
                "use_sliding_window": traits.layer_window(0) is not None,
            }
            | one_window_config(traits)
        )
