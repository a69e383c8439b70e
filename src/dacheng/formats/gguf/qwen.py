"""Qwen2, Qwen2.5, Qwen3 and Qwen3-MoE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dacheng.formats.gguf.architecture import OUTER, PRE_NORMS, PROJECTIONS, QK_NORMS, Architecture, Value, experts
from dacheng.formats.gguf.file import GGUFFile
from dacheng.formats.gguf.keys import Keys
from dacheng.formats.gguf.llama import decoder_keys, rope_of
from dacheng.formats.gguf.rope import rope_keys
from dacheng.formats.huggingface.names import NameTable


class Qwen2(Architecture):
    name, model_type, model_class = "qwen2", "qwen2", "Qwen2ForCausalLM"
    names = NameTable(OUTER | PRE_NORMS | PROJECTIONS)
    writable = True

    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        config = super().config(keys, file)
        if config["head_dim"] * config["num_attention_heads"] == config["hidden_size"]:
            del config["head_dim"]  # as the family says it
        return config | {"use_sliding_window": False}

    def metadata(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return decoder_keys(config) | rope_keys(rope_of(config))


class Qwen3(Qwen2):
    name, model_type, model_class = "qwen3", "qwen3", "Qwen3ForCausalLM"
    names = NameTable(OUTER | PRE_NORMS | PROJECTIONS | QK_NORMS)

    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        config = Architecture.config(self, keys, file)
        return config | {"attention_bias": "blk.0.attn_q.bias" in file.tensors, "use_sliding_window": False}


_EXPERTS = {
    f"ffn_{part}_exps": f"model.layers.{{i}}.mlp.experts.{{e}}.{part}_proj.weight" for part in ("gate", "up", "down")
}


class Qwen3Moe(Qwen3):
    """All layers have experts, and the weights of those chosen add up to 1 (llama.cpp's norm_w of qwen3moe)."""

    name, model_type, model_class = "qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM"
    names = NameTable(
        OUTER | PRE_NORMS | PROJECTIONS | QK_NORMS | {"blk.{i}.ffn_gate_inp.weight": "model.layers.{i}.mlp.gate.weight"}
    )
    writable = False
    floats = (".mlp.gate.weight",)

    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        config = super().config(keys, file)
        keys.only("expert_weights_norm", (True,), "asks for expert weights that do not add up to 1")
        keys.only("expert_weights_scale", (1.0, 0.0), "asks for scaled expert weights")
        keys.only("expert_gating_func", (1,), "asks for a gate other than softmax")
        keys.only("expert_shared_count", (0,), "asks for shared experts")
        return config | {
            "num_experts": keys.integer("expert_count", maximum=2**12),
            "num_experts_per_tok": keys.integer("expert_used_count", maximum=2**12),
            "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }

    def convert(self, name: str, file: GGUFFile, config: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
        parts = name.split(".")
        if len(parts) == 4 and parts[2] in _EXPERTS and parts[3] == "weight":
            template = _EXPERTS[parts[2]].replace("{i}", parts[1])
            yield from experts(file.qtensor(name), template, config["num_experts"], name)
        else:
            yield from super().convert(name, file, config)
