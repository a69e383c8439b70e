"""Losses of scoring models: closed forms, and where the score is read."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.objectives.base import StepContext
from dacheng.objectives.reward_model import RewardRanking, bradley_terry, last_token_scores, process_reward

seeds = st.integers(0, 10**6)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, shift=st.floats(-50, 50))
def test_only_the_difference_counts_until_the_centre_is_fixed(seed, shift):
    chosen, rejected = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    plain = bradley_terry(chosen, rejected).per_example
    torch.testing.assert_close(bradley_terry(chosen + shift, rejected + shift).per_example, plain)
    centred = bradley_terry(chosen + shift, rejected + shift, centre=0.01).per_example
    torch.testing.assert_close(centred - plain, 0.01 * (chosen + rejected + 2 * shift).square(), rtol=1e-6, atol=1e-9)
    margin = torch.full((5,), 0.7, dtype=torch.float64)
    torch.testing.assert_close(
        bradley_terry(chosen, rejected, margin).per_example, bradley_terry(chosen - 0.7, rejected).per_example
    )


def test_equal_scores_cost_ln_two_and_are_no_success():
    out = bradley_terry(torch.zeros(3), torch.zeros(3))
    assert out.per_example.tolist() == pytest.approx([math.log(2)] * 3)
    assert out.metrics["accuracy"].tolist() == [0.0] * 3


def test_scores_of_steps_are_probabilities_of_being_right():
    scores = torch.tensor([[0.0, 9.0, -9.0], [5.0, 0.0, 0.0]], requires_grad=True)
    labels = torch.tensor([[-100.0, 1.0, 1.0], [0.5, -100.0, -100.0]])
    out = process_reward(scores, labels)
    expected = [math.log1p(math.exp(-9)), math.log1p(math.exp(9)), math.log1p(math.exp(5)) - 0.5 * 5]
    assert out.per_example.tolist() == pytest.approx(expected, rel=1e-5)
    assert out.metrics["accuracy"].tolist() == [1.0, 0.0, 0.0]
    slope = torch.autograd.grad(out.per_example.sum(), scores)[0]
    assert slope[0, 0] == 0 and not slope[1, 1:].any()
    with pytest.raises(UsageError, match="a probability"):
        process_reward(scores, torch.full((2, 3), 2.0))
    assert process_reward(scores, torch.full((2, 3), -100.0)).per_example.shape == (0,)


class Scorer(nn.Module):
    """A decoder with a row to score its hidden states with."""

    def __init__(self) -> None:
        super().__init__()
        traits = DecoderTraits(vocab_size=17, width=8, layers=1, heads=2, initializer_range=0.5)
        self.body = Decoder(traits).init_weights(torch.Generator().manual_seed(0))
        self.row = nn.Parameter(torch.randn(8, generator=torch.Generator().manual_seed(1)))

    def forward(self, *arguments: object) -> torch.Tensor:
        return self.body(*arguments)  # type: ignore[no-any-return]

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.row


def pairs(rows: int = 4, length: int = 7) -> SimpleNamespace:
    g = torch.Generator().manual_seed(2)
    return SimpleNamespace(
        tokens=torch.randint(17, (2 * rows, length), generator=g),
        lengths=torch.randint(1, length + 1, (2 * rows,), generator=g),
        margin=torch.rand(rows, generator=g),
    )


def test_the_score_is_read_at_the_last_token_and_padding_does_not_matter():
    model, batch = Scorer(), pairs()
    found = last_token_scores(model, batch.tokens, batch.lengths)
    for row, length in enumerate(batch.lengths.tolist()):
        alone = last_token_scores(model, batch.tokens[row : row + 1, :length], torch.tensor([length]))
        assert alone.item() == pytest.approx(found[row].item(), abs=1e-5)


def test_ranking_in_parts_is_ranking_of_the_whole():
    model, batch = Scorer(), pairs()
    objective = RewardRanking(centre=0.1)
    terms, metrics = objective(model, batch, StepContext())
    whole = torch.autograd.grad(terms["ranking"].sum, list(model.parameters()), allow_unused=True)
    assert objective.counts(batch) == {"ranking": 4.0}
    assert set(metrics) == {"loss", "accuracy", "margin", "mean_reward"}
    sums = [torch.zeros_like(p) for p in model.parameters()]
    for i in range(4):
        rows = [i, 4 + i]
        part = SimpleNamespace(tokens=batch.tokens[rows], lengths=batch.lengths[rows], margin=batch.margin[i : i + 1])
        terms, _ = objective(model, part, StepContext())
        found = torch.autograd.grad(terms["ranking"].sum, list(model.parameters()), allow_unused=True)
        sums = [s if g is None else s + g for s, g in zip(sums, found)]
    for s, g in zip(sums, whole):
        torch.testing.assert_close(s, torch.zeros_like(s) if g is None else g, rtol=1e-4, atol=1e-5)
