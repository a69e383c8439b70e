"""DeepSeek-V2 and V3: latent attention, shared and routed experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dacheng.errors import DachengError
from dacheng.formats.gguf.architecture import (
    MAX_LAYERS,
    OUTER,
    PRE_NORMS,
    PROJECTIONS,
    Architecture,
    Value,
    embedding_shape,
    experts,
    float_tensor,
    is_tied,
    layer_names,
    refuse_unsupported,
    special_ids,
)
from dacheng.formats.gguf.file import GGUFFile
from dacheng.formats.gguf.keys import Keys, shortest
from dacheng.formats.gguf.rope import rope_parameters
from dacheng.formats.huggingface.names import NameTable

_EXPERTS = {
    f"ffn_{part}_exps": f"model.layers.{{i}}.mlp.experts.{{e}}.{part}_proj.weight" for part in ("gate", "up", "down")
}
_SIGMOID = 2  # llama.cpp's LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID


class DeepSeek2(Architecture):
    """V3 is told from V2 by its gate, a sigmoid. New conversions hold kv_b in two parts, the keys' one transposed."""

    name, model_type, model_class = "deepseek2", "deepseek_v2", "DeepseekV2ForCausalLM"
    floats = (".weight",)  # latent attention takes its matrices apart
    names = NameTable(
        OUTER
        | PRE_NORMS
        | PROJECTIONS
        | layer_names(
            {
                "attn_q_a": "self_attn.q_a_proj",
                "attn_q_a_norm": "self_attn.q_a_layernorm",
                "attn_q_b": "self_attn.q_b_proj",
                "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
                "attn_kv_a_norm": "self_attn.kv_a_layernorm",
                "attn_kv_b": "self_attn.kv_b_proj",
                "ffn_gate_inp": "mlp.gate",
                "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
                "ffn_up_shexp": "mlp.shared_experts.up_proj",
                "ffn_down_shexp": "mlp.shared_experts.down_proj",
            }
        )
        | {"blk.{i}.exp_probs_b.bias": "model.layers.{i}.mlp.gate.e_score_correction_bias"}
    )

    def config(self, keys: Keys, file: GGUFFile) -> dict[str, Any]:
        vocab, width = embedding_shape(keys, file)
        refuse_unsupported(keys)
        sigmoid = keys.integer("expert_gating_func", 1, minimum=0) == _SIGMOID
        heads = keys.integer("attention.head_count")
        return {
            "model_type": "deepseek_v3" if sigmoid else "deepseek_v2",
            "architectures": ["DeepseekV3ForCausalLM" if sigmoid else "DeepseekV2ForCausalLM"],
            "vocab_size": vocab,
            "hidden_size": width,
            "num_hidden_layers": keys.integer("block_count", maximum=MAX_LAYERS),
            "num_attention_heads": heads,
            "num_key_value_heads": heads,  # the file says 1: it means the latent
            "intermediate_size": keys.integer("feed_forward_length"),
            "hidden_act": "silu",
            "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
            "max_position_embeddings": keys.integer("context_length"),
            "tie_word_embeddings": is_tied(keys, file),
            "attention_bias": False,
            **special_ids(file),
            **_latent(keys),
            **_experts(keys, sigmoid),
            "rope_parameters": _rope(keys, file),
        }

    def convert(self, name: str, file: GGUFFile, config: Mapping[str, Any]) -> Iterator[tuple[str, Value]]:
        parts = name.split(".")
        part = parts[2] if len(parts) == 4 else ""
        if part in _EXPERTS and parts[3] == "weight":
            template = _EXPERTS[part].replace("{i}", parts[1])
            yield from experts(file.qtensor(name), template, config["n_routed_experts"], name)
        elif part == "attn_k_b":  # (heads, rank, nope), and v_b (heads, v, rank)
            keys, values = float_tensor(file, name), float_tensor(file, name.replace("attn_k_b", "attn_v_b"))
            rank, heads = config["kv_lora_rank"], config["num_attention_heads"]
            both = keys.ndim == values.ndim == 3 and keys.shape[:2] == values.shape[::2] == (heads, rank)
            if not both:
                raise DachengError(
                    f"{file.path}: the parts of kv_b do not fit {heads} heads of rank {rank}", field=name,
                    value=[list(keys.shape), list(values.shape)], remedy="convert the model again",
                )  # fmt: skip
            joined = torch.cat([keys.transpose(1, 2), values], dim=1).reshape(-1, rank)
            yield f"model.layers.{parts[1]}.self_attn.kv_b_proj.weight", joined
        elif part != "attn_v_b":
            yield from super().convert(name, file, config)


def _latent(keys: Keys) -> dict[str, Any]:
    rotated = keys.integer("rope.dimension_count")
    key = keys.integer("attention.key_length")
    value = keys.integer("attention.value_length")
    keys.understood("attention.head_count_kv")
    key, value = keys.integer("attention.key_length_mla", key), keys.integer("attention.value_length_mla", value)
    if key <= rotated:
        raise keys.error("leaves nothing that is not rotated", "attention.key_length", key)
    return {
        "q_lora_rank": keys.integer("attention.q_lora_rank", None),
        "kv_lora_rank": keys.integer("attention.kv_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key - rotated,
        "v_head_dim": value,
    }


def _experts(keys: Keys, sigmoid: bool) -> dict[str, Any]:
    groups = keys.integer("expert_group_count", 1)
    chosen = keys.integer("expert_group_used_count", 1)
    if sigmoid and "expert_group_count" not in keys:
        keys.note("no expert groups are named: experts are chosen among all, as llama.cpp does with this file")
    found = {
        "n_routed_experts": keys.integer("expert_count", maximum=2**12),
        "num_experts_per_tok": keys.integer("expert_used_count", maximum=2**12),
        "n_shared_experts": keys.integer("expert_shared_count", 0, minimum=0) or None,
        "moe_intermediate_size": keys.integer("expert_feed_forward_length"),
        "first_k_dense_replace": keys.integer("leading_dense_block_count", 0, minimum=0),
        "routed_scaling_factor": keys.number("expert_weights_scale", 1.0, or_zero=True) or 1.0,
        "norm_topk_prob": keys.boolean("expert_weights_norm", False),
        "n_group": groups,
        "topk_group": chosen,
    }
    if not sigmoid:
        found["topk_method"] = "group_limited_greedy" if groups > 1 else "greedy"
    return found


def _rope(keys: Keys, file: GGUFFile) -> dict[str, Any]:
    """The rotated part of a head is all there is to rotate; YaRN's mscale comes as 0.1 · mscale_all_dim."""
    found = rope_parameters(keys, file, keys.integer("rope.dimension_count"))
    log_multiplier = keys.number("rope.scaling.yarn_log_multiplier", None, or_zero=True)
    if log_multiplier and found["rope_type"] == "yarn":
        # Where the two differ the file does not say so: in all models of this kind they are equal.
        scale = shortest(round(10 * log_multiplier, 6))
        found |= {"mscale": scale, "mscale_all_dim": scale}
    return found
