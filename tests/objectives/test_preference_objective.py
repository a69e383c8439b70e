"""Preference as an objective: from a model and pairs to terms, in parts as in one piece, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch

from dacheng.data.pairs import PairBatch
from dacheng.errors import DachengError, UsageError
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.nn.moe import MoETraits
from dacheng.objectives import shared_prompts
from dacheng.objectives.base import StepContext
from dacheng.objectives.logps import model_logps
from dacheng.objectives.preference import Preference, PreferenceConfig
from dacheng.train.gradients import refuse_coupled

VOCAB, PAIRS, LENGTH = 19, 4, 8
LOSSES = ("dpo", "ipo", "hinge", "robust", "conservative", "orpo", "simpo", "cpo")
CTX = StepContext()


def made(**changes: object) -> Decoder:
    traits = DecoderTraits(vocab_size=VOCAB, width=16, layers=2, heads=2, initializer_range=0.2, **changes)  # type: ignore[arg-type]
    return Decoder(traits).init_weights(torch.Generator().manual_seed(0))


def batch(seed: int = 0) -> PairBatch:
    """Prompts of 3 tokens; answers of 1 to 5."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (2 * PAIRS, LENGTH + 1), generator=g)
    ids[PAIRS:, :3] = ids[:PAIRS, :3]
    tokens, targets = ids[:, :-1], ids[:, 1:].clone()
    lengths = torch.randint(3, LENGTH + 1, (2 * PAIRS,), generator=g)
    steps = torch.arange(LENGTH)
    targets[(steps < 2) | (steps >= lengths.unsqueeze(1))] = -100
    return PairBatch(tokens, targets, lengths)


def with_reference(model: Decoder, pairs: PairBatch) -> PairBatch:
    with torch.no_grad():
        pairs.reference = model_logps(model, pairs.tokens, pairs.targets).sum(-1)
    return pairs


def config(loss: str) -> PreferenceConfig:
    return PreferenceConfig(loss=loss, label_smoothing=0.1 if loss in ("robust", "conservative") else 0.0)  # type: ignore[arg-type]


def part(pairs: PairBatch, first: int, last: int) -> PairBatch:
    rows = [*range(first, last), *range(PAIRS + first, PAIRS + last)]
    reference = None if pairs.reference is None else pairs.reference[rows]
    return PairBatch(pairs.tokens[rows], pairs.targets[rows], pairs.lengths[rows], reference)


def gradient(objective: Preference, model: Decoder, parts: list[PairBatch]) -> tuple[float, torch.Tensor]:
    """Σ weight · sum / count over the parts, as the trainer adds them up, and its gradient."""
    counts = [objective.counts(p) for p in parts]
    total = {name: sum(count[name] for count in counts) for name in counts[0]}
    model.zero_grad()
    value = 0.0
    for p in parts:
        terms, _ = objective(model, p, CTX)
        assert set(terms) == set(total)
        loss = sum(term.sum * (term.weight / total[name]) for name, term in terms.items())
        loss.backward()  # type: ignore[union-attr]
        value += float(loss)
    return value, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("loss", LOSSES)
def test_parts_are_the_whole(loss):
    model, pairs = made(), with_reference(made(tied_head=False), batch())
    objective = Preference(config(loss))
    one, whole = gradient(objective, model, [pairs])
    four, parts = gradient(objective, model, [part(pairs, i, i + 1) for i in range(PAIRS)])
    uneven, also = gradient(objective, model, [part(pairs, 0, 3), part(pairs, 3, 4)])
    assert four == pytest.approx(one, rel=1e-5) and uneven == pytest.approx(one, rel=1e-5)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(also, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_prompt_that_is_computed_once_for_both_answers_teaches_the_same(loss, monkeypatch):
    model, pairs = made(), with_reference(made(tied_head=False), batch())
    found = []
    for shared in (True, False):
        monkeypatch.setattr(shared_prompts, "worth_planting", lambda *_, shared=shared: shared)
        found.append(gradient(Preference(config(loss)), model, [pairs]))
    (one, gradient_once), (two, gradient_twice) = found
    assert one == pytest.approx(two, rel=1e-5)
    torch.testing.assert_close(gradient_once, gradient_twice, rtol=1e-4, atol=1e-6)


def test_at_the_start_dpo_costs_ln_two_and_reports_no_margin():
    model = made()
    terms, metrics = Preference()(model, with_reference(model, batch()), CTX)
    assert terms["preference"].sum.item() / PAIRS == pytest.approx(math.log(2), rel=1e-5)
    assert float(metrics["rewards/margins"][0]) == pytest.approx(0.0, abs=1e-4)
    assert set(metrics) == {
        "preference_loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
        "logps/chosen", "logps/rejected",
    }  # fmt: skip


def test_the_likelihood_of_the_chosen_answers_is_of_their_tokens_alone():
    model, pairs = made(), batch()
    terms, metrics = Preference(config("orpo"))(model, pairs, CTX)
    with torch.no_grad():
        expected = -model_logps(model, pairs.tokens[:PAIRS], pairs.targets[:PAIRS]).sum().item()
    assert terms["nll"].sum.item() == pytest.approx(expected, rel=1e-5) and terms["nll"].weight == 1.0
    count = Preference(config("orpo")).counts(pairs)["nll"]
    assert count == (pairs.targets[:PAIRS] != -100).sum().item()
    assert metrics["nll_loss"][1] == count
    assert "nll" not in Preference(config("simpo"))(model, pairs, CTX)[0]
    weighted, _ = Preference(PreferenceConfig(nll_weight=0.2))(model, with_reference(model, pairs), CTX)
    assert weighted["nll"].weight == 0.2


def test_a_reference_that_is_asked_equals_one_that_was_stored():
    model, other, pairs = made(), made(tied_head=False), batch()

    def asked(_: object, batch: PairBatch) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return model_logps(other, batch.tokens, batch.targets).sum(-1)

    live, _ = Preference(reference=asked)(model, pairs, CTX)
    stored, _ = Preference()(model, with_reference(other, pairs), CTX)
    assert torch.equal(live["preference"].sum, stored["preference"].sum)


def test_kto_takes_its_reference_point_from_the_other_half_without_a_gradient():
    model, pairs = made(), with_reference(made(tied_head=False), batch())
    pairs.desirable = torch.tensor([True, False, False, True])
    objective = Preference(config("kto"))
    terms, metrics = objective(model, pairs, CTX)
    with torch.no_grad():
        ratios = model_logps(model, pairs.tokens, pairs.targets).sum(-1) - pairs.reference
    point = max(0.0, ratios[PAIRS:].mean().item())
    signs = torch.where(pairs.desirable, 1.0, -1.0)
    expected = (1 - torch.sigmoid(0.1 * signs * (ratios[:PAIRS] - point))).sum().item()
    assert terms["preference"].sum.item() == pytest.approx(expected, rel=1e-5)
    assert float(metrics["kl"][0]) == pytest.approx(point, rel=1e-5)
    assert metrics["rewards/chosen"][1] == 2 and metrics["rewards/rejected"][1] == 2
    with pytest.raises(UsageError, match="in 2 pieces its loss would be another one"):
        refuse_coupled(objective, 2)
    refuse_coupled(Preference(), 2)


def test_experts_are_balanced_by_what_is_learnt_and_never_forgotten():
    moe = MoETraits(experts=4, experts_per_token=2, expert_width=8, balance_loss=0.1, router_z_loss=0.01)
    model, pairs = made(moe=moe), batch()
    with_reference(model, pairs)
    with pytest.raises(UsageError, match="the model has experts"):
        Preference()(model, pairs, CTX)
    for objective in (Preference(routed=True), Preference(config("kto"), routed=True)):
        if objective.config.loss == "kto":
            pairs.desirable = torch.tensor([True, False, False, True])
        terms, _ = objective(model, pairs, CTX)
        assert set(terms) == {"preference", "balance", "router_z"} == set(objective.counts(pairs))


@pytest.mark.parametrize("loss", [*LOSSES, "kto"])
def test_it_learns_which_answer_is_wanted(loss):
    """Answers that begin with an even token are wanted: held-out pairs are told apart after 40 steps."""

    def drawn(seed: int) -> PairBatch:
        g = torch.Generator().manual_seed(seed)
        prompts = torch.randint(VOCAB, (16, 2), generator=g).repeat(2, 1)
        first = 2 * torch.randint(8, (32, 1), generator=g)
        first[16:] += 1
        ids = torch.cat([prompts, first, torch.full((32, 1), 18)], 1)
        targets = ids[:, 1:].clone()
        targets[:, 0] = -100
        return PairBatch(ids[:, :-1], targets, torch.full((32,), 3))

    def labelled(pairs: PairBatch) -> PairBatch:
        """Half of the answers are unwanted ones; the other half of the batch is shifted by a prompt."""
        chosen, rejected = torch.arange(0, 8), torch.arange(24, 32)
        rows = torch.cat([chosen, rejected, chosen.roll(1), rejected.roll(1)])
        ids, targets = pairs.tokens[rows], pairs.targets[rows]
        ids[16:, :2] = pairs.tokens[rows[:16], :2]
        return PairBatch(ids, targets, pairs.lengths, desirable=torch.arange(16) < 8)

    model, reference = made(), made()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    objective = Preference(config(loss))
    for step in range(40):
        pairs = labelled(drawn(step)) if loss == "kto" else drawn(step)
        terms, _ = objective(model, with_reference(reference, pairs), CTX)
        optimizer.zero_grad()
        sum(term.weight * term.sum / objective.counts(pairs)[name] for name, term in terms.items()).backward()  # type: ignore[union-attr]
        optimizer.step()
    unseen = drawn(1000)
    with torch.no_grad():
        ratio = model_logps(model, unseen.tokens, unseen.targets).sum(-1)
        ratio = ratio - model_logps(reference, unseen.tokens, unseen.targets).sum(-1)
    accuracy = (ratio[:16] > ratio[16:]).float().mean().item()
    assert accuracy >= 0.9


# --- what is refused --------------------------------------------------------------------------------------------------
def test_an_answer_without_a_token_is_named():
    pairs = batch()
    pairs.targets[5] = -100
    with pytest.raises(DachengError, match="no token to learn from"):
        Preference(config("simpo"))(made(), pairs, CTX)


def test_a_reference_or_labels_that_are_missing_are_named():
    with pytest.raises(UsageError, match="dpo compares with a reference"):
        Preference()(made(), batch(), CTX)
    model = made()
    with pytest.raises(UsageError, match="single answers"):
        Preference(config("kto"))(model, with_reference(model, batch()), CTX)
    assert not PreferenceConfig(loss="orpo").needs_reference


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"beta": 0.0}, "beta"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"loss": "robust", "label_smoothing": 0.6}, "label_smoothing"),
        ({"loss": "kto", "nll_weight": 1.0}, "nll_weight"),
    ],
)
def test_constants_are_checked_before_anything_runs(values, field):
    with pytest.raises(UsageError) as caught:
        PreferenceConfig(**values)
    assert caught.value.field == field
