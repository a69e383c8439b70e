"""Beam search against transformers', and against all continuations there are."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from dacheng.engine.beam import beam_search
from dacheng.errors import UsageError
from dacheng.formats.loading import load_model
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
CASES = json.loads((GOLDENS / "beam_search.json").read_text())


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['beams']}-{c['max_tokens']}-{c['length_penalty']}")
def test_the_beams_are_the_references(case):
    model = load_model(GOLDENS / "llama" / "gqa_tied").model
    options = {name: case[name] for name in ("beams", "max_tokens", "end_ids", "length_penalty")}
    found = beam_search(model, case["prompt"], **options)
    assert [beam.token_ids for beam in found] == [beam["token_ids"] for beam in case["found"]]
    for ours, theirs in zip(found, case["found"]):
        if theirs["score"] is not None:
            assert ours.score == pytest.approx(theirs["score"], abs=1e-4)


def test_enough_beams_find_the_best_of_all():
    traits = DecoderTraits(vocab_size=5, width=16, layers=1, heads=2, initializer_range=0.5)
    model = Decoder(traits).init_weights(torch.Generator().manual_seed(3))
    prompt, length = [1, 2], 3
    best = max(itertools.product(range(5), repeat=length), key=lambda tokens: log_prob(model, prompt, tokens))
    found = beam_search(model, prompt, beams=25, max_tokens=length)
    assert found[0].token_ids == list(best)
    assert found[0].score == pytest.approx(log_prob(model, prompt, best) / length, abs=1e-5)


def log_prob(model: Decoder, prompt: list[int], tokens: tuple[int, ...]) -> float:
    ids = torch.tensor([prompt + list(tokens)])
    with torch.inference_mode():
        logits = model.head(model(ids, torch.arange(ids.shape[1])[None], DenseCausal()))[0]
    chosen = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(tokens)[:, None])
    return float(chosen.sum())


@pytest.mark.parametrize("options", [{"beams": 0}, {"max_tokens": 0}, {"max_tokens": 10_000}])
def test_what_cannot_be_is_refused(options):
    model = load_model(GOLDENS / "llama" / "gqa_tied").model
    with pytest.raises(UsageError):
        beam_search(model, [1], **options)
    with pytest.raises(UsageError):
        beam_search(model, [])
