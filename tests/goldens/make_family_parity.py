"""Makes tests/goldens/families: tiny random models of every family and their logits, by transformers' own code.

    python tests/goldens/make_family_parity.py [OUT] [CASE …]      # made with transformers 5.23.0, torch 2.13.0

Each case is a directory as `save_pretrained` writes it (weights in bfloat16, to keep it small), with
expected.safetensors {ids (B, T), logits (B, T, V)} computed from those weights in float32, with plain attention. Norm
gains, biases, sinks and the experts' biases are drawn too, weights are large enough that logits differ by whole units,
and texts are longer than windows.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

VOCABULARY, WINDOW = 64, 5
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}
WIDE = {"head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
THREE = {"num_hidden_layers": 3}
SLIDING, FULL = "sliding_attention", "full_attention"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0, "beta_slow": 0.2}
SHORT, LONG = [1.0, 1.5, 2.0, 3.0], [1.5, 2.5, 8.0, 16.0]
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8, "intermediate_size": 16}
LATENT = {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 6,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    **EXPERTS,
    **THREE,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
WITHOUT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")

# case -> config class without its ending, and what differs from BASE
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e3}}),
    "llama_llama3": (
        "Llama",
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e3, "original_max_position_embeddings": 32}},
    ),
    "llama_llama3_of_transformers_4": ("Llama", {"tie_word_embeddings": True}),
    "llama_yarn": ("Llama", {"rope_parameters": {**YARN, "rope_theta": 1e4}}),
    "llama_longrope": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": SHORT,
                "long_factor": LONG,
                "factor": 2.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": ("Mistral", {**WIDE, "sliding_window": None}),
    "mistral_window": ("Mistral", {"sliding_window": WINDOW, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2_window": (
        "Qwen2",
        {**THREE, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {**WIDE, "tie_word_embeddings": True}),
    "qwen3_window_biases": (
        "Qwen3",
        {
            **THREE,
            "head_dim": 8,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": [SLIDING, FULL, SLIDING],
        },
    ),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5}),
    "smollm3_window": (
        "SmolLM3",
        {
            **THREE,
            "no_rope_layers": [1, 0, 1],
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "gemma": ("Gemma", {**WIDE, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2",
        {
            **THREE,
            **WIDE,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma2_without_caps": (
        "Gemma2",
        {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": [FULL, SLIDING],
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            **WIDE,
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 12,
            "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
            "rope_parameters": {
                FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
                SLIDING: {"rope_type": "default", "rope_theta": 1e2},
            },
        },
    ),
    "gemma3_of_transformers_4": (
        "Gemma3Text",
        {"head_dim": 8, **THREE, "sliding_window": WINDOW, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
    ),
    "phi3_window": ("Phi3", {"sliding_window": WINDOW, "original_max_position_embeddings": 64}),
    "phi3_longrope": (
        "Phi3",
        {
            "hidden_size": 32,
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "short_factor": SHORT,
                "long_factor": LONG,
            },
        },
    ),
    "gpt2": ("GPT2", {**GPT2, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    "gpt2_untied_unscaled": (
        "GPT2",
        {**GPT2, "n_inner": 24, "tie_word_embeddings": False, "scale_attn_weights": False},
    ),
    "gpt2_of_the_first_files": ("GPT2", {**GPT2, "activation_function": "gelu"}),
    "gpt_neox": ("GPTNeoX", {"rope_parameters": {"rope_theta": 1e3, "partial_rotary_factor": 0.5}}),
    "gpt_neox_sequential": (
        "GPTNeoX",
        {
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_new",
        },
    ),
    "olmo2": ("Olmo2", {}),
    "olmo2_tied_biases": ("Olmo2", {"num_key_value_heads": 2, "attention_bias": True, "tie_word_embeddings": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "intermediate_size": 12}),
    "mixtral_window": (
        "Mixtral",
        {"num_local_experts": 3, "intermediate_size": 8, "sliding_window": WINDOW, "tie_word_embeddings": True},
    ),
    "qwen3_moe": ("Qwen3Moe", {**WIDE, **EXPERTS, "num_experts": 6, "norm_topk_prob": True}),
    "qwen3_moe_dense_layers": (
        "Qwen3Moe",
        {**EXPERTS, **THREE, "head_dim": 8, "num_experts": 4, "mlp_only_layers": [1], "tie_word_embeddings": True},
    ),
    "deepseek_v2_lite": ("DeepseekV2", {**LATENT, "q_lora_rank": None, "n_shared_experts": 2}),
    "deepseek_v2_groups": (
        "DeepseekV2",
        {
            **LATENT,
            "q_lora_rank": 7,
            "n_shared_experts": 1,
            "topk_method": "group_limited_greedy",
            "num_experts_per_tok": 3,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 2.0,
            "attention_bias": True,
            "rope_parameters": {**YARN, "rope_theta": 1e4, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "deepseek_v3_groups": (
        "DeepseekV3",
        {
            **LATENT,
            "q_lora_rank": 7,
            "n_group": 4,
            "topk_group": 2,
            "num_mtp_layers": 0,
            "rope_parameters": {**YARN, "rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 0.8},
        },
    ),
    "deepseek_v3_plain": (
        "DeepseekV3",
        {
            **LATENT,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
            "rope_interleave": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            **WIDE,
            **THREE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 8,
            "sliding_window": WINDOW,
            "rope_parameters": {**YARN, "rope_theta": 1e4, "truncate": False},
        },
    ),
}
# What docs/guide/add-a-family.md adds: make_family_parity.py tests/goldens/added_family starcoder2
ADDED = {"starcoder2": ("Starcoder2", {"sliding_window": WINDOW, "tie_word_embeddings": True})}


@torch.no_grad()
def make(name: str, out: Path) -> None:
    family, changes = (CASES | ADDED)[name]
    values = BASE | changes
    if family == "GPT2":
        values = {key: value for key, value in values.items() if key not in WITHOUT}
    if family == "GPTNeoX":
        del values["num_key_value_heads"]
    if name == "llama_llama3_of_transformers_4":
        values |= {"rope_theta": 5e3, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32}}
    torch.manual_seed(zlib.crc32(name.encode()))
    config = getattr(transformers, f"{family}Config")(**values)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    draw(model)
    model.to(torch.bfloat16).save_pretrained(out)
    if name in REWRITTEN:
        REWRITTEN[name](out)
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
    ids = torch.randint(VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(1))
    logits = model.eval()(ids).logits
    assert logits.std() > 1, (name, logits.std())
    save_file({"ids": ids, "logits": logits.contiguous()}, out / "expected.safetensors")


def draw(model: torch.nn.Module) -> None:
    """Everything that a new model has as 0 or 1, and routers whose choices are clear."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("e_score_correction_bias"):
            tensor.normal_(-1, 0.5)  # below 0, which experts outside the chosen groups must not be taken to be
        elif name.endswith("sinks"):
            tensor.normal_(0, 0.5)
        elif name.endswith("bias"):
            tensor.normal_(0, 0.3)
        elif "norm" in name or ".ln_" in name:
            tensor.add_(0.3 * torch.randn_like(tensor))
        elif name.endswith((".gate.weight", "router.weight")):
            tensor.normal_(0, 1.0)
        elif ".experts." in name:
            tensor.normal_(0, 0.5)


def llama_of_transformers_4(out: Path) -> None:
    config = json.loads((out / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    write(out, config)


def gemma3_of_transformers_4(out: Path) -> None:
    config = json.loads((out / "config.json").read_text())
    del config["rope_parameters"], config["layer_types"]
    config |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "sliding_window_pattern": 2}
    config["torch_dtype"] = config.pop("dtype")
    config["cache_implementation"] = "hybrid"
    write(out, config)


def gpt2_of_the_first_files(out: Path) -> None:
    """The inner network's names alone, with the causal masks that were buffers then."""
    tensors = load_file(out / "model.safetensors")
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for i in range(GPT2["n_layer"]):
        renamed[f"h.{i}.attn.bias"] = torch.ones(64, 64).tril().view(1, 1, 64, 64)
    save_file(renamed, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    write(out, config | {"n_ctx": 64, "task_specific_params": {"text-generation": {"max_length": 50}}})


def write(out: Path, config: dict[str, Any]) -> None:
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


REWRITTEN = {
    "llama_llama3_of_transformers_4": llama_of_transformers_4,
    "gemma3_of_transformers_4": gemma3_of_transformers_4,
    "gpt2_of_the_first_files": gpt2_of_the_first_files,
}


def main(out: Path, names: Iterable[str] = ()) -> None:
    for name in names or CASES:
        shutil.rmtree(out / name, ignore_errors=True)
        make(name, out / name)


if __name__ == "__main__":
    here = Path(__file__).resolve().parent / "families"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else here, sys.argv[2:])
