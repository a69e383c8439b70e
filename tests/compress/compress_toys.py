"""Models that are small enough to quantise many times, and a text that they have a tokenizer for."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from dacheng.compress.calibrate import CalibrationBatch
from dacheng.formats.model_directory import save_model
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import Bidirectional
from dacheng.text import Tokenizer, train_tokenizer

TRAITS = {
    "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_width": 128, "max_positions": 64, "tied_head": True,
}  # fmt: skip


def some_text(lines: int = 400) -> str:
    return "\n".join(f"line {i}: the sum of {i} and {7 * i % 91} is {i + 7 * i % 91}" for i in range(lines))


@cache
def toy_tokenizer() -> Tokenizer:
    return train_tokenizer([some_text()], vocab_size=300)


def toy_decoder(seed: int = 0, **traits: object) -> Decoder:
    """Random, with a few input channels of each block that are much larger than the others, as in real models."""
    model = Decoder(DecoderTraits(**({"vocab_size": 300} | TRAITS | traits))).eval()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.15, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(1.0)
        for block in model.blocks:
            for norm in (block.attention_norm, block.mlp_norm):
                if norm is not None and norm.weight is not None:
                    norm.weight[::16] *= 8.0
    return model


def toy_directory(folder: Path, seed: int = 0, **traits: object) -> Path:
    tokenizer = toy_tokenizer()
    return save_model(folder, toy_decoder(seed, **{"vocab_size": tokenizer.vocab_size} | traits), tokenizer)


def toy_batches(rows: int = 8, width: int = 32, vocab_size: int = 300, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab_size, (rows, width), generator=generator)
    return list(tokens.split(2))


def toy_encoder_batches() -> tuple[CalibrationBatch, list[CalibrationBatch]]:
    """Two texts in one padded batch, and each by itself."""
    tokens, lengths = torch.arange(20).view(2, 10) % 7, torch.tensor([10, 6])
    counted = torch.arange(10) < lengths[:, None]
    padded = CalibrationBatch(tokens, Bidirectional(lengths), counted)
    alone = [
        CalibrationBatch(row[None, :n], Bidirectional(torch.tensor([n]))) for row, n in zip(tokens, lengths.tolist())
    ]
    return padded, alone
