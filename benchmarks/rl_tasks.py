"""Two-digit sums for a small model made from nothing: the model, its lessons, its prompts, its reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dacheng.align.reinforce.prompts import Prompt
from dacheng.align.rewards.base import FunctionReward, RewardMix, Sample
from dacheng.data.batches import PackedSource
from dacheng.data.chats import shards_of
from dacheng.data.order import permutation
from dacheng.data.packing import pack
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.objectives.next_token import NextToken
from dacheng.text import train_tokenizer
from dacheng.train import OptimizerConfig, Phase, ScheduleConfig, TrainConfig, Trainer

HELD_OUT = 300
MAX_TOKENS = 6


def byte_tokenizer() -> Any:
    """Bytes, an end of text and a padding: a digit is a token."""
    return train_tokenizer(["01"], vocab_size=258, min_frequency=1 << 30)


def new_model(tokenizer: Any, seed: int, width: int = 96, layers: int = 3) -> Decoder:
    traits = DecoderTraits(
        vocab_size=tokenizer.vocab_size, width=width, layers=layers, heads=4, max_positions=32, mlp_width=4 * width,
        activation="relu2",
    )  # fmt: skip
    return Decoder(traits).init_weights(torch.Generator().manual_seed(seed))


def sums(seed: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """All pairs of 10 … 99 in an order of the seed: those to learn from, and those that are held out."""
    order = permutation(8100, seed, 7)
    pairs = [(10 + int(n) // 90, 10 + int(n) % 90) for n in order]
    return pairs[HELD_OUT:], pairs[:HELD_OUT]


def prompts_of(pairs: list[tuple[int, int]], tokenizer: Any) -> list[Prompt]:
    made = []
    for a, b in pairs:
        text = f"{a}+{b}="
        made.append(Prompt(text, tuple(tokenizer.encode(text)), text, None, {"answer": str(a + b)}))
    return made


def right(sample: Sample) -> float:
    return float(sample.response.strip() == sample.meta["answer"] and sample.finish_reason == "stop")


def exact() -> RewardMix:
    return RewardMix([(FunctionReward("exact", right), 1.0)])


def lessons(pairs: list[tuple[int, int]], tokenizer: Any, rows: int, seed: int) -> PackedSource:
    """Rows of one sum each; only the answer and its end are learnt."""
    documents = []
    for a, b in pairs:
        prompt, answer = tokenizer.encode(f"{a}+{b}="), [*tokenizer.encode(str(a + b)), tokenizer.eos_id]
        ids = np.array(prompt + answer, np.int32)
        documents.append((ids, np.arange(len(ids)) >= len(prompt)))
    shards = shards_of(documents)
    return PackedSource(shards, pack(shards, 12), rows, seed=seed)


def teach(model: Decoder, source: PackedSource, out: Path, steps: int, lr: float = 2e-3, seed: int = 0) -> float:
    """Supervised steps; returns their seconds."""
    config = TrainConfig(
        steps=steps, seed=seed, precision="fp32", save_every=10_000,
        optimizer=OptimizerConfig(lr=lr, weight_decay=0.01), schedule=ScheduleConfig(kind="constant", warmup=20),
    )  # fmt: skip
    return Trainer(model, [Phase(NextToken())], source, [], config, out).fit().seconds
