"""Whole runs of TRL's DPOTrainer and RewardTrainer on four pairs, written to preference_runs.json.

    python tests/goldens/make_preference_runs.py            (needs trl, transformers, datasets)

A tiny Llama whose weights are sines of their places, so that nobody needs to store them; the four pairs are the batch
of every step; AdamW at a constant rate. What is compared is the loss of every step: the reference, the
log-probabilities, what is learnt of a row, the gradient, its clipping and the optimizer all are in it.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

GOLDEN = Path(__file__).with_name("preference_runs.json")
CONFIG = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}  # fmt: skip
PAIRS = [
    {"prompt_ids": [3, 9, 27, 11], "chosen_ids": [5, 6, 7, 2], "rejected_ids": [40, 41, 2]},
    {"prompt_ids": [4, 8], "chosen_ids": [30, 2], "rejected_ids": [31, 33, 35, 37, 2]},
    {"prompt_ids": [10, 20, 30, 40, 12, 13], "chosen_ids": [5, 2], "rejected_ids": [6, 2]},
    {"prompt_ids": [21], "chosen_ids": [22, 23, 24, 25, 26, 2], "rejected_ids": [42, 2]},
]
STEPS, RATE, BETA = 6, 1e-3, 0.1


def sines(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weight of this name: about normal, spread 0.2; norms around 1."""
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    values = 0.28 * torch.sin(places * 0.7310585 + places.sqrt() * 3.3 + sum(name.encode())).view(shape)
    return (values + 1.0 if "norm" in name else values).float()


def model(kind: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    config = LlamaConfig(**CONFIG, pad_token_id=0, bos_token_id=None, eos_token_id=2, attn_implementation="eager")
    config.num_labels = 1
    made = (LlamaForCausalLM if kind != "reward" else LlamaForSequenceClassification)(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            known = name if name.startswith("model.") or "score" in name else f"model.{name}"
            parameter.copy_(torch.zeros_like(parameter) if "score" in name else sines(known, tuple(parameter.shape)))
    return made


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"<{i}>": i for i in range(CONFIG["vocab_size"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<1>")), pad_token="<0>", eos_token="<2>"
    )


def run(kind: str) -> list[float]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    seen: list[float] = []

    base, config = (RewardTrainer, RewardConfig) if kind == "reward" else (DPOTrainer, DPOConfig)

    class Given(base):  # type: ignore[misc, valid-type]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def log(self, logs: Any, start_time: Any = None) -> None:
            if "loss" in logs:
                seen.append(self._exact.pop(0))
            super().log(logs, start_time)

        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            out = super().compute_loss(*arguments, **named)
            self.__dict__.setdefault("_exact", []).append(float(out[0] if isinstance(out, tuple) else out))
            return out

    if kind == "reward":
        rows = [{"chosen_ids": p["prompt_ids"] + p["chosen_ids"], "rejected_ids": p["prompt_ids"] + p["rejected_ids"]}
                for p in PAIRS]  # fmt: skip
        more: dict[str, Any] = {"center_rewards_coefficient": 0.01}
    else:
        rows, more = PAIRS, {"beta": BETA, "loss_type": [kind]}
    with tempfile.TemporaryDirectory() as folder:
        settings = config(
            output_dir=folder, per_device_train_batch_size=4, max_steps=STEPS, learning_rate=RATE, logging_steps=1,
            lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.99,
            max_grad_norm=1.0, report_to=[], save_strategy="no", bf16=False, use_cpu=True, gradient_checkpointing=False,
            disable_tqdm=True, **more,
        )  # fmt: skip
        named: dict[str, Any] = {} if kind == "reward" else {"ref_model": model(kind)}
        Given(
            model=model(kind),
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
            **named,
        ).train()
    return seen


def made() -> dict[str, Any]:
    import trl

    losses = {kind: run(kind) for kind in ("sigmoid", "ipo", "hinge", "reward")}
    return {"trl": trl.__version__, "pairs": PAIRS, "rate": RATE, "beta": BETA, "config": CONFIG, "losses": losses}


if __name__ == "__main__":
    text = json.dumps(made(), indent=1)
    GOLDEN.write_text(text + "\n")
    sys.stdout.write(text)
