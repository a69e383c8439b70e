"""Makes tests/goldens/llama: tiny random Llama models and their logits, by transformers' own code.

    python tests/goldens/make_llama_parity.py [OUT]        # made with transformers 5.23.0, torch 2.13.0

Each case is a directory as `save_pretrained` writes it, with expected.safetensors {ids (B, T), logits (B, T, V)}
computed in float32. Norm gains and biases are drawn too (fresh ones would be 1 and 0, and prove nothing), and weights
are large enough that logits differ by whole units.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

BASE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
CASES: dict[str, dict] = {
    "mha_untied": {},
    "gqa_tied": {"num_key_value_heads": 2, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
    "mqa_biases": {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    "wide_heads": {"hidden_size": 48, "head_dim": 16, "num_key_value_heads": 2, "num_hidden_layers": 1},
    "gelu_big_eps": {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-2, "num_hidden_layers": 1},
    "config_of_transformers_4": {"num_key_value_heads": 2, "rope_theta": 5e5, "tie_word_embeddings": True},
    "sharded_bfloat16": {"num_key_value_heads": 2, "num_hidden_layers": 3},
}


@torch.no_grad()
def make(name: str, seed: int, out: Path) -> None:
    changes = dict(CASES[name])
    theta = changes.pop("rope_theta", 10000.0)
    rope = {"rope_type": "default", "rope_theta": theta}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**BASE, "rope_parameters": rope, **changes})).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("norm.weight"):
            parameter.add_(0.3 * torch.randn_like(parameter))
        elif parameter_name.endswith("bias"):
            parameter.normal_(0, 0.3)
    sharded = name.startswith("sharded")
    if sharded:
        model.to(torch.bfloat16)
    model.save_pretrained(out, max_shard_size="20KB" if sharded else "1GB")
    if name == "config_of_transformers_4":
        as_transformers_4_wrote_it(out / "config.json")
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert model.config.rope_parameters["rope_theta"] == theta
    ids = torch.randint(BASE["vocab_size"], (2, 24))
    logits = model(ids).logits
    assert logits.std() > 1, logits.std()
    save_file({"ids": ids, "logits": logits.contiguous()}, out / "expected.safetensors")


def as_transformers_4_wrote_it(path: Path) -> None:
    """rope_theta beside rope_scaling, torch_dtype, no head_dim: the form that most published models have."""
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.42.3"
    config["is_llama_config"] = True
    config["rope_interleaved"] = False
    del config["head_dim"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main(out: Path) -> None:
    for seed, name in enumerate(CASES):
        shutil.rmtree(out / name, ignore_errors=True)
        make(name, seed, out / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "llama")
