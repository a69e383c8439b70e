"""Makes tests/goldens/sampling.json: distributions after the logits processors of transformers.

    python tests/goldens/make_sampling.py [OUT]        # made with transformers 5.23.0, torch 2.13.0

The processors are called in the order in which `generate` calls them (bias before all, as vLLM has it): logit bias,
repetition penalty, min_tokens, temperature, top-k, top-p, min-p. Logits are distinct: among equals transformers' top-k
keeps all, ours exactly k.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

CASES = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_k": 1},
    {"top_p": 0.9},
    {"top_p": 0.2},
    {"min_p": 0.1},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "temperature": 1.5},
    {"top_k": 8, "top_p": 0.7},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1},
    {"temperature": 2.0, "top_k": 12, "top_p": 0.8, "min_p": 0.3},
    {"logit_bias": [[5, 4.0], [17, -3.5]]},
    {"logit_bias": [[3, 2.0], [8, 1.0]], "repetition_penalty": 1.3, "top_k": 10, "temperature": 0.8},
    {"min_tokens": 2, "stop_token_ids": [1, 9]},
    {"min_tokens": 2, "stop_token_ids": [1, 9], "logit_bias": [[9, 6.0]], "temperature": 1.5, "top_p": 0.9},
]
SEEN = [3, 17, 17, 30]  # the prompt; nothing is generated yet


def processed(logits: torch.Tensor, params: dict) -> torch.Tensor:
    ids = torch.tensor([SEEN])
    if "logit_bias" in params:
        logits = SequenceBiasLogitsProcessor({(token,): bias for token, bias in params["logit_bias"]})(ids, logits)
    if "repetition_penalty" in params:
        logits = RepetitionPenaltyLogitsProcessor(params["repetition_penalty"])(ids, logits)
    if "min_tokens" in params:
        ends = torch.tensor(params["stop_token_ids"])
        logits = MinNewTokensLengthLogitsProcessor(len(SEEN), params["min_tokens"], ends)(ids, logits)
    if "temperature" in params:
        logits = TemperatureLogitsWarper(params["temperature"])(ids, logits)
    if "top_k" in params:
        logits = TopKLogitsWarper(params["top_k"])(ids, logits)
    if "top_p" in params:
        logits = TopPLogitsWarper(params["top_p"])(ids, logits)
    if "min_p" in params:
        logits = MinPLogitsWarper(params["min_p"])(ids, logits)
    return torch.softmax(logits, -1)


def main(out: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    cases = []
    for params in CASES:
        logits = (torch.randn(1, 40, generator=generator) * 2).round(decimals=4)
        probs = processed(logits.clone(), params)
        cases.append({"params": params, "seen": SEEN, "logits": logits[0].tolist(), "probabilities": probs[0].tolist()})
    out.write_text(json.dumps({"made_by": "make_sampling.py", "cases": cases}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "sampling.json")
