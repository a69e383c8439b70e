"""A model of two layers, and comparisons that say: the reply that names the next colour politely is better."""

from __future__ import annotations

import torch

from dacheng.data.pair_layouts import Comparison, MarkedReply
from dacheng.data.preferences import Preference
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.text import ChatRenderer, train_tokenizer

COLOURS = ("red", "green", "blue", "white", "black", "grey", "brown", "pink", "gold", "silver", "lime", "teal")
MAX = 64


def renderer() -> ChatRenderer:
    texts = [f"user assistant what follows {a} please kindly {b} stupid fool it is" for a in COLOURS for b in COLOURS]
    special = ["<|im_start|>", "<|im_end|>"]
    return ChatRenderer(train_tokenizer(texts, vocab_size=300, special_tokens=special, split="gpt-2"), "chatml")


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def comparisons(colours=COLOURS) -> list[Preference]:
    return [
        Preference(str(i), Comparison([turn("user", f"what follows {a}")], [turn("assistant", f"please kindly {b}")],
                                      [turn("assistant", f"stupid fool {b}")]))
        for i, (a, b) in enumerate(zip(colours, colours[1:] + colours[:1]))
    ]  # fmt: skip


def marked(colours=COLOURS) -> list[Preference]:
    return [
        Preference(str(i), MarkedReply([turn("user", f"what follows {a}")],
                                       [turn("assistant", "please kindly" if i % 2 else "stupid fool")], bool(i % 2)))
        for i, a in enumerate(colours)
    ]  # fmt: skip


def model(vocab_size: int, seed: int = 0, width: int = 32, positions: int = MAX) -> Decoder:
    traits = DecoderTraits(vocab_size=vocab_size, width=width, layers=2, heads=2, max_positions=positions, mlp_width=64)
    made = Decoder(traits).init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(10 if name == "embed.weight" else 4)
    return made.eval()
