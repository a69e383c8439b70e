"""A draft model whose ids mean other tokens is refused before it guesses."""

import pytest
import torch

from dacheng.errors import UsageError
from dacheng.formats.draft import load_draft
from dacheng.formats.loading import load_model
from dacheng.formats.model_directory import save_model
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.text import train_tokenizer


def saved(folder, texts: list[str]):
    tokenizer = train_tokenizer(texts, vocab_size=280)
    traits = DecoderTraits(vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2, max_positions=32)
    save_model(folder, Decoder(traits).init_weights(torch.Generator().manual_seed(0)), tokenizer)
    return load_model(folder)


def test_the_tokens_of_both_are_compared(tmp_path):
    model = saved(tmp_path / "model", ["the cat sat on the mat"] * 20)
    saved(tmp_path / "same", ["the cat sat on the mat"] * 20)
    saved(tmp_path / "other", ["dogs bark loudly outside"] * 20)
    assert load_draft(tmp_path / "same", model).traits.vocab_size == model.model.traits.vocab_size
    with pytest.raises(UsageError) as refusal:
        load_draft(tmp_path / "other", model)
    assert refusal.value.field == "draft_model" and "ids mean other tokens" in str(refusal.value)
