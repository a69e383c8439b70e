"""Comparing what two directories compute."""

from __future__ import annotations

import pytest
import torch

from dacheng.errors import DachengError
from dacheng.formats.model_directory import load_model, save_model
from dacheng.formats.verify import verify
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits

TRAITS = DecoderTraits(vocab_size=40, width=16, layers=2, heads=2, max_positions=32)


@pytest.fixture
def directory(tmp_path):
    model = Decoder(TRAITS)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return save_model(tmp_path / "a", model)


def test_a_model_equals_itself(directory):
    assert verify(directory, directory) == {
        "max_abs": 0.0,
        "mean_abs": 0.0,
        "top1_agreement": 1.0,
        "kl": 0.0,
        "positions": 4 * 32,
        "vocab_size": 40,
        "input": "random ids, seed 0",
    }


def test_figures_of_a_known_difference(directory, tmp_path):
    """The head is the embedding: twice its rows, with the inputs' scale cancelled by the norm, doubles the logits of a
    model whose blocks add nothing."""
    model = load_model(directory).model
    for block in model.blocks:
        block.attention.o.weight.data.zero_()
        block.mlp.down.weight.data.zero_()
    save_model(tmp_path / "one", model)
    ids = [[1, 2, 3], [4, 5]]
    with torch.no_grad():
        rows = model.embed.weight[torch.tensor([1, 2, 3, 4, 5])]
        logits = model.head(model.norm(rows)).double()
    model.norm.weight.data.mul_(2)
    save_model(tmp_path / "two", model)
    report = verify(tmp_path / "one", tmp_path / "two", ids=ids)
    p = logits.softmax(-1)
    kl = (p * (logits.log_softmax(-1) - (2 * logits).log_softmax(-1))).sum(-1).mean().item()
    assert report["max_abs"] == pytest.approx(logits.abs().max().item(), rel=1e-6)
    assert report["mean_abs"] == pytest.approx(logits.abs().mean().item(), rel=1e-6)
    assert report["kl"] == pytest.approx(kl, rel=1e-5)
    assert report["top1_agreement"] == 1.0
    assert (report["positions"], report["input"]) == (5, "ids")


def test_rounding_to_bfloat16_shows(directory, tmp_path):
    save_model(tmp_path / "b", load_model(directory).model, dtype="bfloat16")
    report = verify(directory, tmp_path / "b", seed=3)
    assert 1e-5 < report["max_abs"] < 0.5
    assert 0 < report["kl"] < 1e-2
    assert 0.9 < report["top1_agreement"] <= 1.0


def test_what_cannot_be_compared_is_refused(directory, tmp_path):
    other = save_model(tmp_path / "b", Decoder(DecoderTraits(vocab_size=41, width=16, layers=1, heads=2)))
    for kwargs, field in (
        ({"ids": [[40]]}, "row 0"),
        ({"ids": [[1], [-1]]}, "row 1"),
        ({"ids": [[0] * 33]}, "row 0"),
        ({"ids": [[]]}, "ids"),
        ({"ids": [[1]], "texts": ["a"]}, "ids"),
        ({"ids": [[1]]}, "vocab_size"),
    ):
        with pytest.raises(DachengError) as caught:
            verify(directory, other, **kwargs)
        assert caught.value.field == field
    with pytest.raises(DachengError, match="has no tokenizer"):
        verify(directory, directory, texts=["a"])
