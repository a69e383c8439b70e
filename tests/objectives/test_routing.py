"""Losses on the routers' decisions: their formulas, and that accumulation does not change them."""

from __future__ import annotations

import pytest
import torch

from dacheng.data.batches import TokenBatch
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.moe import MoETraits
from dacheng.objectives.base import StepContext
from dacheng.objectives.next_token import NextToken
from dacheng.objectives.routing import routed_layers, routing_counts

VOCAB, EXPERTS = 20, 4


def made(**changes: object) -> Decoder:
    moe = MoETraits(
        **{"experts": EXPERTS, "experts_per_token": 2, "expert_width": 8, "balance_loss": 0.1, "router_z_loss": 0.01}
        | changes  # type: ignore[arg-type]
    )
    traits = DecoderTraits(vocab_size=VOCAB, width=16, layers=2, heads=2, moe=moe, initializer_range=0.3)
    return Decoder(traits).init_weights(torch.Generator().manual_seed(0))


def batch(rows: int = 8, length: int = 6) -> TokenBatch:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCAB, (rows, length), generator=generator)
    targets = torch.randint(VOCAB, (rows, length), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = -100
    targets[2] = -100  # a row that nothing is learnt from
    ids = torch.zeros(rows, length, dtype=torch.long)
    ids[4, 3:], targets[4, 3:] = -1, -100  # padding
    return TokenBatch(tokens, targets, torch.arange(length).expand(rows, length), ids)


def part(whole: TokenBatch, rows: slice) -> TokenBatch:
    assert whole.document_ids is not None
    return TokenBatch(whole.tokens[rows], whole.targets[rows], whole.positions[rows], whole.document_ids[rows])


def gradient(model: Decoder, parts: list[TokenBatch]) -> torch.Tensor:
    """Σ weight · sum / count over the parts, as the trainer adds them up."""
    objective = NextToken(routed=True)
    counts = [objective.counts(p) for p in parts]
    total = {name: sum(count[name] for count in counts) for name in counts[0]}
    model.zero_grad()
    for p in parts:
        terms, _ = objective(model, p, StepContext())
        sum(term.sum * (term.weight / total[name]) for name, term in terms.items()).backward()  # type: ignore
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_eight_parts_equal_one_with_all_terms():
    model, whole = made(), batch()
    one = gradient(model, [whole])
    load = [layer.load.clone() for layer in routed_layers(model)]
    eight = gradient(model, [part(whole, slice(i, i + 1)) for i in range(8)])
    torch.testing.assert_close(eight, one, atol=1e-6, rtol=1e-4)
    for layer, first in zip(routed_layers(model), load):
        assert torch.equal(layer.load, 2 * first)  # counted twice by now, the same each time
        assert first.sum() == 2 * (7 * 6 - 3)  # two choices of each token that is learnt from, padding not


@pytest.mark.parametrize(("logits", "expected"), [([0.0, 0, 0, 0], 1.0), ([50.0, 50, 0, 0], 2.0)])
def test_balance_is_one_when_even_and_n_over_k_when_all_choose_the_same(logits, expected):
    model, whole = made(balance_loss=1.0, router_z_loss=0.0, router_bias=True), batch()
    for layer in routed_layers(model):
        with torch.no_grad():
            layer.router.weight.zero_()
            layer.router.bias.copy_(torch.tensor(logits))
    objective = NextToken(routed=True)
    terms, _ = objective(model, whole, StepContext())
    per_layer = terms["balance"].sum / objective.counts(whole)["balance"] / 2
    assert per_layer.item() == pytest.approx(expected)


def test_z_term_is_the_squared_log_sum_exp():
    model, whole = made(balance_loss=0.0), batch()
    for layer in routed_layers(model):
        with torch.no_grad():
            layer.router.weight.zero_()
    objective = NextToken(routed=True)
    terms, _ = objective(model, whole, StepContext())
    assert set(terms) == {"next_token", "router_z"}
    tokens = 7 * 6 - 3
    assert terms["router_z"].sum.item() == pytest.approx(2 * tokens * torch.tensor(4.0).log().item() ** 2, rel=1e-5)


def test_a_batch_without_targets_adds_nothing():
    model, whole = made(), batch()
    whole.targets.fill_(-100)
    assert set(routing_counts(whole.targets).values()) == {0.0}
    terms, _ = NextToken(routed=True)(model, whole, StepContext())
    assert all(term.sum.item() == 0 for term in terms.values())
    assert all(layer.load.sum() == 0 for layer in routed_layers(model))


def test_a_dense_model_has_no_routing_terms():
    traits = DecoderTraits(vocab_size=VOCAB, width=16, layers=1, heads=2)
    terms, _ = NextToken()(Decoder(traits).init_weights(), batch(), StepContext())
    assert set(terms) == {"next_token"} == set(NextToken().counts(batch()))


def test_experts_are_not_left_out_by_accident():
    with pytest.raises(UsageError, match="the model has experts"):
        NextToken()(made(), batch(), StepContext())
