"""A model of two layers and twelve conversations, as objects and as files that a process can read."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from dacheng.adapt import AdaptTrainConfig, WorkerConfig
from dacheng.formats.model_directory import save_model
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.records import Record
from dacheng.text import ChatRenderer, train_tokenizer

ROW = 64
COLOURS = ("red", "green", "blue", "white", "black", "grey", "brown", "pink", "gold", "silver", "lime", "teal")


def renderer() -> ChatRenderer:
    texts = [f"user assistant what follows {a} is {b}" for a in COLOURS for b in COLOURS]
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = train_tokenizer(texts, vocab_size=300, special_tokens=special, split="gpt-2")
    return ChatRenderer(tokenizer, "chatml")


def chats() -> list[list[dict[str, str]]]:
    """What follows each colour, in a circle."""
    return [
        [
            {"role": "user", "content": f"what follows {colour}"},
            {"role": "assistant", "content": f"{COLOURS[(i + 1) % len(COLOURS)]} follows"},
        ]
        for i, colour in enumerate(COLOURS)
    ]


def examples() -> list[Record]:
    return [Record(str(i), messages=chat) for i, chat in enumerate(chats())]


def model(vocab_size: int, seed: int = 0) -> Decoder:
    traits = DecoderTraits(vocab_size=vocab_size, width=64, layers=2, heads=4, max_positions=ROW, mlp_width=128)
    made = Decoder(traits).init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim == 2:  # of a frozen head's size depends how sure an answer can be
                parameter.mul_(20 if name == "embed.weight" else 5)
    return made


def settings(**changes) -> AdaptTrainConfig:
    defaults = {"rank": 4, "alpha": 16.0, "lr": 3e-3, "row_tokens": ROW, "batch_tokens": 2 * ROW, "threads": 1}
    return AdaptTrainConfig(**{**defaults, **({} if "seconds" in changes or "epochs" in changes else {"steps": 12})}
                            | changes)  # fmt: skip


def directory(folder: Path) -> Path:
    """The model as a directory with a chat template, and examples.jsonl beside it."""
    from dacheng.text.chat.builtin import TEMPLATES

    tokenizer = renderer().tokenizer
    base = save_model(folder / "base", model(tokenizer.vocab_size), tokenizer)
    (base / "chat_template.jinja").write_text(TEMPLATES["chatml"])
    (folder / "examples.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats()))
    return base


def worker_config(folder: Path, out: Path, **changes) -> Path:
    """The configuration of a process, as a file."""
    config = WorkerConfig(base=str(folder / "base"), examples=str(folder / "examples.jsonl"), out=str(out),
                          train=settings(**changes))  # fmt: skip
    return config.write(out / "worker.json")
