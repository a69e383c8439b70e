"""Makes tests/goldens/peft: adapters as PEFT writes them, and the logits of its own code with them.

    python tests/goldens/make_peft.py [OUT]        # made with peft 0.21.2, transformers 5.23.0, torch 2.13.0

The bases are goldens that are there already (llama/..., families/...). Each case is a directory as `save_pretrained`
writes it, with expected.safetensors {ids (B, T), logits (B, T, V), merged (B, T, V)} in float32. Every matrix is drawn,
B and DoRA's magnitudes too: a fresh adapter would prove nothing.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
# Case: (base, arguments of LoraConfig).
CASES: dict[str, tuple[str, dict]] = {
    "lora": ("llama/gqa_tied", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    "all_linear": ("llama/mqa_biases", {"r": 3, "lora_alpha": 7, "target_modules": "all-linear"}),
    "rslora": ("llama/gqa_tied", {"r": 8, "lora_alpha": 4, "use_rslora": True, "target_modules": ["k_proj"]}),
    "dora": ("llama/mqa_biases", {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": "all-linear"}),
    "patterns": (
        "llama/mha_untied",
        {
            "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj", "lm_head"],
            "rank_pattern": {"model.layers.1.mlp.down_proj": 2, "lm_head": 6}, "alpha_pattern": {"q_proj": 3},
        },
    ),
    "one_layer": ("llama/mha_untied", {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "phi3": ("families/phi3_window", {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}),
    "phi3_dora": ("families/phi3_window", {"r": 4, "use_dora": True, "target_modules": ["qkv_proj", "gate_up_proj"]}),
    "gpt2": ("families/gpt2", {"r": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "gpt_neox": ("families/gpt_neox", {"r": 4, "target_modules": ["query_key_value", "dense"]}),
    "qwen3": ("families/qwen3", {"r": 2, "lora_alpha": 16, "target_modules": "all-linear"}),
    "gemma2": ("families/gemma2", {"r": 2, "lora_alpha": 16, "target_modules": ["o_proj", "gate_proj"]}),
}  # fmt: skip


@torch.no_grad()
def make(name: str, seed: int, out: Path) -> None:
    base, arguments = CASES[name]
    model = AutoModelForCausalLM.from_pretrained(HERE / base, dtype=torch.float32).eval()
    torch.manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (2, 12))
    plain = model(ids).logits
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **arguments)).eval()
    for parameter_name, parameter in peft.named_parameters():
        if "lora_A" in parameter_name or "lora_B" in parameter_name:
            parameter.normal_(0, 0.2)
        elif "lora_magnitude_vector" in parameter_name:
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    logits = peft(ids).logits
    assert (logits - plain).abs().max() > 0.1, name
    peft.peft_config["default"].base_model_name_or_path = base
    peft.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)
    config = json.loads((out / "adapter_config.json").read_text())
    config["target_modules"].sort()  # a set's order differs from run to run
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    merged = peft.merge_and_unload()(ids).logits
    expected = {"ids": ids, "logits": logits.contiguous(), "merged": merged.contiguous()}
    save_file(expected, out / "expected.safetensors")


def main(out: Path) -> None:
    for seed, name in enumerate(CASES):
        shutil.rmtree(out / name, ignore_errors=True)
        make(name, seed, out / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "peft")
