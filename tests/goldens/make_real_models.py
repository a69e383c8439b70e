"""Makes tests/goldens/real_models.json: what SmolLM2-135M and Gemma-3-270M say, by transformers' own code.

    python tests/goldens/make_real_models.py GGUF_OF_SMOLLM2 GGUF_OF_GEMMA3   # transformers 5.23.0, torch 2.13.0, gguf

The weights are dequantised by transformers from the same GGUF file that the tests load. For each prompt: the ids, 64
greedy tokens, and of the logits behind the prompt the greatest forty, some others, and their norm.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = {
    "smollm2": ["The capital of France is", "def fibonacci(n):\n", "<|im_start|>user\nName three colours.<|im_end|>\n"],
    "gemma3-270m": ["<bos>The capital of France is", "<bos>def fibonacci(n):\n", "<bos>长江是中国最长的河流，"],
}


@torch.inference_mode()
def main(paths: dict[str, Path]) -> None:
    found: dict[str, list[dict]] = {}
    for name, path in paths.items():
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        found[name] = []
        for prompt in PROMPTS[name]:
            ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
            logits = model(ids).logits[0, -1]
            top = logits.topk(40)
            some = torch.arange(0, len(logits), len(logits) // 40)
            index = torch.cat((top.indices, some))
            out = model.generate(ids, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0)
            found[name].append(
                {
                    "prompt": prompt,
                    "ids": ids[0].tolist(),
                    "index": index.tolist(),
                    "logits": [round(x, 5) for x in logits[index].tolist()],
                    "norm": logits.norm().item(),
                    "greedy": out[0, ids.shape[1] :].tolist(),
                }
            )
    target = Path(__file__).with_name("real_models.json")
    target.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(dict(zip(PROMPTS, map(Path, sys.argv[1:]))))
