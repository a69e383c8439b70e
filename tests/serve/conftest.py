from __future__ import annotations

from pathlib import Path

import pytest
import torch
from serve_fakes import chat_tokenizer

from dacheng.formats.model_directory import save_model
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory) -> Path:
    """A model of random weights, whose greedy texts are all different, with a chat template."""
    tokenizer = chat_tokenizer("chatml")
    traits = DecoderTraits(vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=4, max_positions=512)
    model = Decoder(traits).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.25, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(1.0)
    return save_model(tmp_path_factory.mktemp("models") / "tiny", model, tokenizer)
