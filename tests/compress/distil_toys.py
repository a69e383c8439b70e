"""A small chat model that knows what follows each colour, and the conversations it learnt from."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dacheng.data.chats import chat_source
from dacheng.formats.model_directory import save_model
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.objectives.base import StepContext
from dacheng.objectives.next_token import NextToken
from dacheng.text import ChatRenderer, Tokenizer, train_tokenizer
from dacheng.text.chat.builtin import TEMPLATES

ROW = 48
COLOURS = ("red", "green", "blue", "white", "black", "grey", "brown", "pink")


def tokenizer() -> Tokenizer:
    texts = [f"user assistant what follows {a} is {b}" for a in COLOURS for b in COLOURS]
    special = ["<|im_start|>", "<|im_end|>"]
    made = train_tokenizer(texts, vocab_size=300, special_tokens=special, split="gpt-2")
    config = {**made.config, "eos_token": "<|im_end|>", "chat_template": TEMPLATES["chatml"]}
    return Tokenizer(made._core, config=config)


def chats_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "chats.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": f"what follows {colour}"},
                      {"role": "assistant", "content": f"{COLOURS[(i + 1) % len(COLOURS)]} follows"}]}
        for i, colour in enumerate(COLOURS)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def decoder(vocab_size: int, seed: int = 0, **changes) -> Decoder:
    shape = {"width": 48, "layers": 4, "heads": 4, "mlp_width": 96, "max_positions": ROW}
    traits = DecoderTraits(vocab_size=vocab_size, **(shape | changes))
    return Decoder(traits).init_weights(torch.Generator().manual_seed(seed))


def taught(folder: Path, steps: int = 120) -> Path:
    """The directory of a teacher that has learnt the circle of colours."""
    words = tokenizer()
    model = decoder(words.vocab_size)
    source, _ = chat_source([chats_file(folder)], ChatRenderer(words), context_length=ROW, batch_rows=2)
    optimizer, objective = torch.optim.AdamW(model.parameters(), lr=4e-3), NextToken()
    for step in range(steps):
        for batch in source.next(step):
            terms, _ = objective(model, batch, StepContext())
            (terms["next_token"].sum / objective.counts(batch)["next_token"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return save_model(folder / "teacher", model.eval(), words)
