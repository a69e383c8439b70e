"""Noise of transformers' own NEFTune hook: python tests/goldens/make_neftune.py, with transformers installed."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def cases() -> list[dict]:
    from transformers.integrations.neftune import neftune_post_forward_hook

    found = []
    for seed, (rows, length), alpha in ((1, (1, 5), 5.0), (2, (2, 3), 15.0)):
        module = torch.nn.Embedding(300, 64).train()
        module.neftune_noise_alpha = alpha
        torch.manual_seed(seed)
        noise = neftune_post_forward_hook(module, None, torch.zeros(rows, length, 64))
        tokens = torch.arange(rows * length).view(rows, length)
        found.append({"seed": seed, "alpha": alpha, "shape": [rows, length, 64], "tokens": tokens.tolist(),
                      "noise": [[[round(v, 8) for v in t] for t in row] for row in noise.tolist()]})  # fmt: skip
    return found


if __name__ == "__main__":
    path = Path(__file__).parent / "neftune.json"
    path.write_text(json.dumps({"peer": "transformers.integrations.neftune", "cases": cases()}) + "\n")
