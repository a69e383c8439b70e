"""Tiny models of transformers in GGUF files, put there the way llama.cpp's converter does (conversion/*.py): stated
here once more, so that neither our reader nor our writer is tested by itself."""

from __future__ import annotations

import json
import math

import torch
from gguf_files import file_bytes
from safetensors.torch import load_file

F32 = 0


def rows_for_neighbours(weight, heads):
    """LlamaModel.permute"""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def dense_names(name):
    """The names of gguf-py's tensor_mapping.py for a decoder of Llama's words."""
    name = name.replace("model.layers.", "blk.").replace("model.embed_tokens", "token_embd")
    for theirs, ours in {
        "model.norm": "output_norm", "lm_head": "output", "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv",
        "mlp.gate_up_proj": "ffn_up", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    }.items():  # fmt: skip
        name = name.replace(theirs, ours)
    return name


def base_keys(config, head_dim=True):
    keys = {
        "block_count": config["num_hidden_layers"], "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"], "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config.get("num_key_value_heads", config["num_attention_heads"]),
    }  # fmt: skip
    if "rms_norm_eps" in config:
        keys["attention.layer_norm_rms_epsilon"] = config["rms_norm_eps"]
    if head_dim and config.get("head_dim"):
        keys |= {"attention.key_length": config["head_dim"], "attention.value_length": config["head_dim"]}
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    rope = {"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {}), **rope}
    if rope.get("rope_theta"):
        keys["rope.freq_base"] = float(rope["rope_theta"])
    if rope.get("rope_type") in ("linear", "yarn"):
        keys |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope.get("rope_type") == "yarn":
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        keys |= {f"rope.scaling.yarn_{beta}": float(rope[beta]) for beta in ("beta_fast", "beta_slow") if beta in rope}
    return keys


def llama(config, tensors):
    out = {}
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    for name, tensor in tensors.items():
        if ".q_proj." in name or ".k_proj." in name:
            tensor = rows_for_neighbours(tensor, heads if ".q_proj." in name else kv)
        ours = dense_names(name).replace("post_attention_layernorm", "ffn_norm")
        out[ours] = tensor
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    keys = base_keys(config) | {"vocab_size": config["vocab_size"], "rope.dimension_count": head_dim}
    old = {"rope_theta": config.get("rope_theta"), **(config.get("rope_scaling") or {})}
    rope = config.get("rope_parameters") or old
    if rope.get("rope_type") == "llama3":
        out["rope_freqs.weight"] = llama3_tensor(rope, head_dim)
    if config.get("sliding_window"):
        keys["attention.sliding_window"] = config["sliding_window"]
    return keys, out


def llama3_tensor(rope, dim):
    """LlamaModel.generate_extra_tensors"""
    factors = []
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    length = rope["original_max_position_embeddings"]
    for freq in 1.0 / (rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)):
        wave = 2 * math.pi / freq
        if wave < length / high:
            factors.append(1.0)
        elif wave > length / low:
            factors.append(rope["factor"])
        else:
            smooth = (length / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return torch.tensor(factors, dtype=torch.float32)


def qwen(config, tensors):
    return base_keys(config), {
        dense_names(name).replace("post_attention_layernorm", "ffn_norm"): t for name, t in tensors.items()
    }


def stacked(tensors, expert):
    """Matrices of experts, one by one -> one stack. `expert`: what stands before the number."""
    rest, stacks = {}, {}
    for name, tensor in tensors.items():
        before, found, after = name.partition(expert)
        if found:
            number, _, part = after.partition(".")
            stacks.setdefault(before + part, {})[int(number)] = tensor
        else:
            rest[name] = tensor
    return rest, {name: torch.stack([parts[i] for i in sorted(parts)]) for name, parts in stacks.items()}


def qwen3_moe(config, tensors):
    rest, stacks = stacked(tensors, "mlp.experts.")
    keys, out = qwen(config, rest)
    out = {name.replace("mlp.gate.", "ffn_gate_inp."): tensor for name, tensor in out.items()}
    for name, tensor in stacks.items():
        layer, part = name.split(".")[2], name.split(".")[3].removesuffix("_proj")
        out[f"blk.{layer}.ffn_{part}_exps.weight"] = tensor
    return keys | {
        "expert_count": config["num_local_experts"], "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
    }, out  # fmt: skip


def mixtral(config, tensors):
    rest, stacks = stacked(tensors, "block_sparse_moe.experts.")
    keys, out = llama(config, rest)
    out = {name.replace("block_sparse_moe.gate.", "ffn_gate_inp."): tensor for name, tensor in out.items()}
    for name, tensor in stacks.items():
        layer, part = name.split(".")[2], {"w1": "gate", "w2": "down", "w3": "up"}[name.split(".")[3]]
        out[f"blk.{layer}.ffn_{part}_exps.weight"] = tensor
    return keys | {"expert_count": config["num_local_experts"], "expert_used_count": config["num_experts_per_tok"]}, out


def gemma(config, tensors):
    out = {}
    for name, tensor in tensors.items():
        if name == "lm_head.weight":
            continue
        tensor = tensor + 1 if name.endswith("norm.weight") else tensor
        if config["model_type"] == "gemma":
            name = name.replace("post_attention_layernorm", "ffn_norm")
        name = name.replace("post_attention_layernorm", "post_attention_norm")
        name = name.replace("pre_feedforward_layernorm", "ffn_norm")
        out[dense_names(name.replace("post_feedforward_layernorm", "post_ffw_norm"))] = tensor
    keys = base_keys(config)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(name):
            keys[name] = config[name]
    if config.get("layer_types"):
        keys["attention.sliding_window"] = config["sliding_window"]
        keys["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in config["layer_types"]]
    local = config.get("rope_parameters", {}).get("sliding_attention")
    return keys | ({"rope.freq_base_swa": local["rope_theta"]} if local else {}), out


def smollm3(config, tensors):
    keys, out = llama(config, tensors)
    keys.pop("attention.sliding_window", None)
    return keys, out


def olmo2(config, tensors):
    keys, out = qwen(config, tensors)
    names = {"ffn_norm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
    for theirs, ours in names.items():
        out = {name.replace(theirs, ours): tensor for name, tensor in out.items()}
    return keys, out


def phi3(config, tensors):
    keys, out = qwen(config, tensors)
    rope = config["rope_parameters"]
    dims = int(rope.get("partial_rotary_factor", 1.0) * config["hidden_size"]) // config["num_attention_heads"]
    length = rope.get("original_max_position_embeddings", config["original_max_position_embeddings"])
    keys |= {"rope.dimension_count": dims, "rope.scaling.original_context_length": length,
             "attention.sliding_window": config["sliding_window"] or 0}  # fmt: skip
    if rope.get("long_factor"):
        for kind in ("long", "short"):
            out[f"rope_factors_{kind}.weight"] = torch.tensor(rope[f"{kind}_factor"], dtype=torch.float32)
        scale = config["max_position_embeddings"] / length
        keys["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(scale) / math.log(length))
    return keys, out


def gpt2(config, tensors):
    names = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm",
             "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up",
             "mlp.c_proj": "ffn_down", "lm_head": "output"}  # fmt: skip
    out = {}
    for name, tensor in tensors.items():
        tensor = tensor.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else tensor
        name = name.removeprefix("transformer.").replace("h.", "blk.", 1)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        out[name] = tensor
    return {
        "block_count": config["n_layer"], "context_length": config["n_positions"],
        "embedding_length": config["n_embd"], "feed_forward_length": config["n_inner"] or 4 * config["n_embd"],
        "attention.head_count": config["n_head"], "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
    }, out  # fmt: skip


def gpt_neox(config, tensors):
    names = {"gpt_neox.layers.": "blk.", "gpt_neox.embed_in": "token_embd", "gpt_neox.final_layer_norm": "output_norm",
             "embed_out": "output", "lm_head": "output", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm", "attention.query_key_value": "attn_qkv",
             "attention.dense": "attn_output", "mlp.dense_h_to_4h": "ffn_up",
             "mlp.dense_4h_to_h": "ffn_down"}  # fmt: skip
    out, heads = {}, config["num_attention_heads"]
    for name, tensor in tensors.items():
        if "query_key_value" in name:
            by_head = tensor.reshape(heads, 3, -1, *tensor.shape[1:])
            tensor = torch.cat([by_head[:, part].flatten(0, 1) for part in range(3)])
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        out[name] = tensor
    head = config["hidden_size"] // heads
    keys = base_keys(config) | {
        "rope.dimension_count": int(head * config["rope_parameters"]["partial_rotary_factor"]),
        "use_parallel_residual": config["use_parallel_residual"],
        "attention.layer_norm_epsilon": config["layer_norm_eps"],
    }
    del keys["attention.head_count_kv"]
    return keys, out


def gpt_oss(config, tensors):
    out = {}
    for name, tensor in tensors.items():
        layer = name.split(".")[2] if name.startswith("model.layers.") else ""
        if "experts.gate_up_proj" in name:
            kind = "bias" if name.endswith("_bias") else "weight"
            tensor = tensor if kind == "bias" else tensor.transpose(-1, -2)
            gate, up = (tensor[:, ::2], tensor[:, 1::2])
            out |= {f"blk.{layer}.ffn_gate_exps.{kind}": gate, f"blk.{layer}.ffn_up_exps.{kind}": up}
        elif "experts.down_proj" in name:
            kind = "bias" if name.endswith("_bias") else "weight"
            out[f"blk.{layer}.ffn_down_exps.{kind}"] = tensor if kind == "bias" else tensor.transpose(-1, -2)
        else:
            name = name.replace("mlp.router", "ffn_gate_inp").replace("self_attn.sinks", "attn_sinks.weight")
            out[dense_names(name.replace("post_attention_layernorm", "post_attention_norm"))] = tensor
    keys = base_keys(config) | {
        "attention.sliding_window": config["sliding_window"], "expert_count": config["num_local_experts"],
        "expert_used_count": config["num_experts_per_tok"], "expert_feed_forward_length": config["intermediate_size"],
    }  # fmt: skip
    return keys, out


def deepseek2(config, tensors):
    rest, stacks = stacked(tensors, "mlp.experts.")
    out, heads = {}, config["num_attention_heads"]
    rope, nope, value = config["qk_rope_head_dim"], config["qk_nope_head_dim"], config["v_head_dim"]
    names = {"self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm",
             "self_attn.q_b_proj": "attn_q_b", "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
             "self_attn.kv_a_layernorm": "attn_kv_a_norm", "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
             "mlp.gate.weight": "ffn_gate_inp.weight", "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
             "mlp.shared_experts.up_proj": "ffn_up_shexp", "mlp.shared_experts.down_proj": "ffn_down_shexp",
             "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    for name, tensor in rest.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        name = dense_names(name)
        if "kv_b_proj" in name:
            both = tensor.reshape(heads, nope + value, -1)
            layer = name.split(".")[1]
            out[f"blk.{layer}.attn_k_b.weight"] = both[:, :nope].transpose(1, 2)
            out[f"blk.{layer}.attn_v_b.weight"] = both[:, nope:]
        else:
            out[name] = tensor
    for name, tensor in stacks.items():
        layer, part = name.split(".")[2], name.split(".")[3].removesuffix("_proj")
        out[f"blk.{layer}.ffn_{part}_exps.weight"] = tensor
    keys = base_keys(config, head_dim=False) | {
        "attention.head_count_kv": 1, "rope.dimension_count": rope, "attention.kv_lora_rank": config["kv_lora_rank"],
        "attention.key_length": config["kv_lora_rank"] + rope, "attention.value_length": config["kv_lora_rank"],
        "attention.key_length_mla": nope + rope, "attention.value_length_mla": value,
        "expert_count": config["n_routed_experts"], "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"], "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_weights_scale": config["routed_scaling_factor"], "vocab_size": config["vocab_size"],
        "expert_gating_func": 2 if config["model_type"] == "deepseek_v3" else 1,
    }  # fmt: skip
    if config["norm_topk_prob"]:
        keys["expert_weights_norm"] = True
    if config.get("n_group"):
        keys |= {"expert_group_count": config["n_group"], "expert_group_used_count": config["topk_group"]}
    if config.get("q_lora_rank"):
        keys["attention.q_lora_rank"] = config["q_lora_rank"]
    if scale := config["rope_parameters"].get("mscale_all_dim"):
        keys["rope.scaling.yarn_log_multiplier"] = 0.1 * scale
    return keys, out


CASES = {
    "llama_linear": ("llama", llama), "llama_llama3_of_transformers_4": ("llama", llama),
    "llama_yarn": ("llama", llama), "mistral_window": ("llama", llama), "mixtral": ("llama", mixtral),
    "mixtral_window": ("llama", mixtral), "qwen2": ("qwen2", qwen), "qwen3": ("qwen3", qwen),
    "qwen3_moe": ("qwen3moe", qwen3_moe), "gemma": ("gemma", gemma), "gemma2": ("gemma2", gemma),
    "gemma3": ("gemma3", gemma), "smollm3": ("smollm3", smollm3), "olmo2": ("olmo2", olmo2),
    "phi3_window": ("phi3", phi3), "phi3_longrope": ("phi3", phi3), "gpt2": ("gpt2", gpt2),
    "gpt_neox": ("gptneox", gpt_neox), "gpt_oss": ("gpt-oss", gpt_oss), "deepseek_v2_lite": ("deepseek2", deepseek2),
    "deepseek_v2_groups": ("deepseek2", deepseek2), "deepseek_v3_groups": ("deepseek2", deepseek2),
}  # fmt: skip
# What a file does not say, because llama.cpp has one answer in its code.
UNSAID = {
    "gemma2": {"query_pre_attn_scalar": 8}, "gemma3": {"query_pre_attn_scalar": 8},
    "deepseek_v3_groups": {"rope_parameters.mscale": 0.8}, "deepseek_v2_groups": {"attention_bias": False},
}  # fmt: skip


def written(case, folder, goldens, change=None):
    source = goldens / "families" / case
    config = json.loads((source / "config.json").read_text())
    tensors = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    for name, value in UNSAID.get(case, {}).items():
        outer, _, inner = name.rpartition(".")
        (config[outer] if outer else config)[inner or name] = value
    if case == "deepseek_v2_groups":  # its biases have no name in GGUF
        tensors = {k: v for k, v in tensors.items() if not k.endswith("proj.bias") and "with_mqa.bias" not in k}
    arch, convert = CASES[case]
    keys, out = convert(config, tensors)
    metadata = {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in keys.items()}
    if change:
        change(metadata, out)
    blob = {n: (tuple(t.shape), F32, t.float().contiguous().numpy().tobytes()) for n, t in out.items()}
    path = folder / f"{case}.gguf"
    path.write_bytes(file_bytes(metadata, blob))
    return path, config, tensors
