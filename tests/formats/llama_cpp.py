"""llama.cpp itself (the wheel xllamacpp), in a process of its own: next-token log-probabilities of a GGUF file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

_PROGRAM = """
import json, sys
import xllamacpp as xlc
path, prompts, steps, probabilities = json.loads(sys.argv[1])
params = xlc.CommonParams()
params.model.path = path
params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.warmup = 1024, 1, 1, False
params.cache_type_k = params.cache_type_v = xlc.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xlc.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xlc.Server(params)
for prompt in prompts:
    out = server.handle_completions({"prompt": prompt, "max_tokens": steps, "temperature": 0, "n_probs": probabilities,
        "ignore_eos": True, "cache_prompt": False})
    if "choices" not in out:
        raise SystemExit(f"llama.cpp: {out}")
    content = out["choices"][0]["logprobs"]["content"]
    rows = [[[top["id"], top["logprob"]] for top in item["top_logprobs"]] for item in content]
    print("ROW" + json.dumps([[item["id"] for item in content], rows]))
"""


def continuations(path: Path, prompts: list[list[int]], steps: int, probabilities: int) -> list[tuple[list[int], list]]:
    """Of each prompt: `steps` greedy ids, and at each step {id: log-probability} of the `probabilities` likeliest."""
    request = json.dumps([str(path), prompts, steps, probabilities])
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, request], capture_output=True, text=True, timeout=300, errors="replace"
    )
    rows = [json.loads(line[3:]) for line in done.stdout.splitlines() if line.startswith("ROW")]
    assert len(rows) == len(prompts), done.stderr[-2000:] + done.stdout[-2000:]
    return [(ids, [dict(map(tuple, top)) for top in tops]) for ids, tops in rows]


def largest_difference(found: list, logits: torch.Tensor) -> float:
    """`found`: what `continuations` gives for one prompt; logits (steps, V) are ours at the same places."""
    expected = logits.log_softmax(-1)
    return max(abs(float(expected[i, token]) - logp) for i, row in enumerate(found) for token, logp in row.items())
