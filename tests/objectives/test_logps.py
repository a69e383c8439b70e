"""Log-probabilities of a model's targets: whole or in chunks, alone or in a batch, with their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.contexts import DenseCausal
from dacheng.objectives.cross_entropy import IGNORED
from dacheng.objectives.logps import entropy, model_logps, token_logps
from dacheng.objectives.next_token import NextToken

VOCAB = 23


def made(**changes: object) -> Decoder:
    traits = DecoderTraits(vocab_size=VOCAB, width=16, layers=2, heads=2, initializer_range=0.3, **changes)  # type: ignore[arg-type]
    return Decoder(traits).init_weights(torch.Generator().manual_seed(0)).double()


def texts(rows: int = 4, length: int = 9, seed: int = 1, share: float = 0.6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (rows, length + 1), generator=g)
    targets = tokens[:, 1:].clone()
    targets[torch.rand(rows, length, generator=g) > share] = IGNORED
    return tokens[:, :-1], targets


def whole(model: Decoder, tokens: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """By torch's own functions, all logits at once."""
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    hidden = model(tokens, positions, DenseCausal())
    logits = hidden @ model.head_weight.t()
    cap = model.traits.logit_soft_cap
    logits = (logits if cap is None else cap * torch.tanh(logits / cap)) / temperature
    log_p, kept = logits.log_softmax(-1), targets != IGNORED
    logps = log_p.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) * kept
    return logps, torch.distributions.Categorical(logits=logits).entropy() * kept


@settings(max_examples=20, deadline=None)
@given(
    chunk=st.integers(1, 40),
    share=st.floats(0, 1),
    temperature=st.sampled_from([1.0, 0.3, 2.5]),
    soft_cap=st.sampled_from([None, 3.0]),
    tied=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_chunks_have_the_values_and_gradients_of_the_whole(chunk, share, temperature, soft_cap, tied, seed):
    model = made(logit_soft_cap=soft_cap, tied_head=tied)
    model.head = lambda hidden: _head(model, hidden)  # type: ignore[method-assign]  # in float64
    tokens, targets = texts(seed=seed, share=share)
    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(2, *targets.shape, generator=g, dtype=torch.float64)
    expected = whole(model, tokens, targets, temperature)
    found = model_logps(model, tokens, targets, temperature=temperature, chunk=chunk, entropy=True)
    parameters = list(model.parameters())
    gradients = []
    for logps, entropies in (expected, found):
        loss = (logps * weights[0] + entropies * weights[1]).sum()
        gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


def _head(model: Decoder, hidden: Tensor) -> Tensor:
    logits, cap = hidden @ model.head_weight.t(), model.traits.logit_soft_cap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def test_their_mean_is_the_loss_of_pretraining():
    from dacheng.data.batches import TokenBatch
    from dacheng.objectives.base import StepContext

    model, (tokens, targets) = made().float(), texts()
    batch = TokenBatch(tokens, targets, torch.arange(9).expand(4, 9))
    terms, _ = NextToken()(model, batch, StepContext())
    assert -model_logps(model, tokens, targets, chunk=5).sum().item() == pytest.approx(
        terms["next_token"].sum.item(), rel=1e-6
    )


def test_neither_padding_nor_neighbours_change_a_row():
    model, (tokens, targets) = made(), texts()
    alone = [model_logps(model, tokens[i : i + 1, :6], targets[i : i + 1, :6]) for i in range(4)]
    padded = targets.clone()
    padded[:, 6:] = IGNORED
    together = model_logps(model, tokens, padded)
    torch.testing.assert_close(together[:, :6], torch.cat(alone), rtol=1e-6, atol=1e-6)
    assert not together[:, 6:].any()


def test_sampler_and_trainer_have_one_function_to_the_bit():
    model, (tokens, targets) = made().float(), texts(share=1.0)
    logits = model.head(model(tokens, torch.arange(9).expand(4, 9), DenseCausal()))
    sampled = token_logps(logits.flatten(0, 1), targets.flatten(), 0.7).view_as(targets)
    for with_entropy in (True, "figure"):
        assert torch.equal(model_logps(model, tokens, targets, temperature=0.7, entropy=with_entropy)[0], sampled)
    assert torch.equal(model_logps(model, tokens, targets, temperature=0.7), sampled)


def test_nothing_counted_is_zero_with_a_zero_gradient():
    model, (tokens, targets) = made(), texts(share=-1.0)
    logps = model_logps(model, tokens, targets)
    assert logps.shape == targets.shape and not logps.any()
    assert (
        not torch.is_grad_enabled()
        or not logps.requires_grad
        or not torch.autograd.grad(logps.sum(), model.embed.weight, allow_unused=True, materialize_grads=True)[0].any()
    )


def test_a_head_that_is_trained_alone_has_its_gradient_in_chunks_too():
    model, (tokens, targets) = made(tied_head=False), texts()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("lm_head"))
    gradients = [
        torch.autograd.grad(model_logps(model, tokens, targets, chunk=chunk).sum(), model.lm_head.weight)[0]
        for chunk in (3, 512)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    assert gradients[0].any()


def test_the_figure_of_entropy_has_no_gradient():
    model, (tokens, targets) = made(), texts()
    _, figure = model_logps(model, tokens, targets, entropy="figure")
    _, wanted = model_logps(model, tokens, targets, entropy=True)
    assert not figure.requires_grad and wanted.requires_grad
    assert torch.equal(figure, wanted.detach())


def test_entropy_by_its_closed_forms():
    assert entropy(torch.zeros(3, 8)).tolist() == pytest.approx([math.log(8)] * 3)
    banned = torch.tensor([[0.0, 0.0, -math.inf, -math.inf]], requires_grad=True)
    found = entropy(banned)
    assert found.item() == pytest.approx(math.log(2))
    assert torch.isfinite(torch.autograd.grad(found.sum(), banned)[0]).all()
    sharp = torch.tensor([[0.0, 5.0]])
    assert entropy(sharp, 1e-3).item() == pytest.approx(0.0, abs=1e-6)
    assert entropy(sharp, 1e6).item() == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_greedy_choice_has_no_log_probability(temperature):
    with pytest.raises(UsageError, match="above 0"):
        token_logps(torch.zeros(2, 3), torch.tensor([0, 1]), temperature)
