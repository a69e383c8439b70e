"""Makes tests/goldens/beam_search.json: beam search over a tiny model by transformers' own code.

python tests/goldens/make_beam_search.py        # made with transformers 5.23.0, torch 2.13.0
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
MODEL = HERE / "llama" / "gqa_tied"
CASES = [
    {"beams": beams, "max_tokens": length, "length_penalty": penalty, "end_ids": ends}
    for beams, length, penalty, ends in (
        (1, 12, 1.0, []), (2, 12, 1.0, []), (4, 16, 1.0, [7]), (4, 16, 0.0, [7]), (4, 16, 2.0, [7, 30]),
        (6, 20, 1.0, [3, 11, 50]), (3, 1, 1.0, [7]),
    )
]  # fmt: skip


@torch.inference_mode()
def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    found = []
    for number, case in enumerate(CASES):
        prompt = torch.randint(0, 96, (1, 5), generator=torch.Generator().manual_seed(number))
        out = model.generate(
            prompt, num_beams=case["beams"], num_return_sequences=case["beams"], max_new_tokens=case["max_tokens"],
            length_penalty=case["length_penalty"], eos_token_id=case["end_ids"] or None, pad_token_id=95,
            early_stopping=True, do_sample=False, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        beams = []
        scores = out.sequences_scores.tolist() if case["beams"] > 1 else [None]
        for row, score in zip(out.sequences[:, 5:].tolist(), scores):
            end = next((i + 1 for i, token in enumerate(row) if token in case["end_ids"]), len(row))
            beams.append({"token_ids": row[:end], "score": score})
        found.append({"prompt": prompt[0].tolist(), **case, "found": beams})
    (HERE / "beam_search.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
