"""Losses on preferences: closed forms, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dacheng.errors import UsageError
from dacheng.objectives.preference import PairLogps, cpo, dpo, kto, kto_kl, orpo, simpo
from dacheng.objectives.preference_losses import _log1mexp

LN2 = math.log(2)
KINDS = ("sigmoid", "hinge", "robust", "conservative", "ipo")
seeds = st.integers(0, 10**6)
betas = st.floats(0.01, 5.0)


def drawn(seed: int, pairs: int = 6, spread: float = 3.0) -> PairLogps:
    g = torch.Generator().manual_seed(seed)
    sums = -20 - spread * torch.randn(2, pairs, generator=g, dtype=torch.float64)
    tokens = torch.randint(1, 30, (2, pairs), generator=g)
    return PairLogps(*sums, *tokens)


def swapped(logps: PairLogps) -> PairLogps:
    return PairLogps(logps.rejected, logps.chosen, logps.rejected_tokens, logps.chosen_tokens)


def smoothing(kind: str, epsilon: float) -> float:
    return epsilon if kind in ("robust", "conservative") else 0.0


@settings(max_examples=30, deadline=None)
@given(seed=seeds, beta=betas, epsilon=st.floats(0, 0.45))
def test_a_policy_that_is_the_reference(seed, beta, epsilon):
    logps = drawn(seed)
    expected = {"sigmoid": LN2, "hinge": 1.0, "robust": LN2, "conservative": LN2, "ipo": 1 / (4 * beta**2)}
    for kind in KINDS:
        for normalise in ("token", "sum"):
            out = dpo(logps, logps, beta, kind, smoothing(kind, epsilon), normalise)
            assert out.per_example.tolist() == pytest.approx([expected[kind]] * 6)
            assert not out.metrics["rewards/margins"].any() and not out.metrics["rewards/accuracies"].any()
    desirable = torch.tensor([True, False] * 3)
    out = kto(logps.chosen, logps.chosen, desirable, torch.tensor(0.0), beta, 2.0, 3.0)
    assert out.per_example.tolist() == pytest.approx([1.0, 1.5] * 3)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, beta=betas)
def test_equal_answers_without_a_reference(seed, beta):
    one = drawn(seed)
    same = PairLogps(one.chosen, one.chosen, one.chosen_tokens, one.chosen_tokens)
    assert orpo(same, beta).per_example.tolist() == pytest.approx([beta * LN2] * 6)
    assert cpo(same, beta).per_example.tolist() == pytest.approx([LN2] * 6)
    assert simpo(same, beta, 0.0).per_example.tolist() == pytest.approx([LN2] * 6)
    assert simpo(same, beta, 0.5).per_example.tolist() == pytest.approx([math.log1p(math.exp(beta * 0.5))] * 6)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, shift=st.floats(-10, 10), kind=st.sampled_from(KINDS))
def test_what_is_common_to_policy_and_reference_cancels(seed, shift, kind):
    policy, reference = drawn(seed), drawn(seed + 1)
    moved = [PairLogps(p.chosen + shift, p.rejected - 2 * shift, *p[2:]) for p in (policy, reference)]
    epsilon = smoothing(kind, 0.1)
    torch.testing.assert_close(
        dpo(*moved, 0.3, kind, epsilon).per_example,
        dpo(policy, reference, 0.3, kind, epsilon).per_example,
    )


@settings(max_examples=30, deadline=None)
@given(seed=seeds, beta=st.floats(0.01, 1.0), epsilon=st.floats(0.01, 0.45))
def test_robust_is_what_clean_labels_would_cost_on_average_over_flips(seed, beta, epsilon):
    """The unbiased estimate of Chowdhury et al. 2024."""
    policy, reference = drawn(seed), drawn(seed + 1)
    right, wrong = (
        dpo(a, b, beta, "robust", epsilon).per_example
        for a, b in ((policy, reference), (swapped(policy), swapped(reference)))
    )
    clean = dpo(policy, reference, beta).per_example
    torch.testing.assert_close((1 - epsilon) * right + epsilon * wrong, clean, rtol=1e-7, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, beta=st.floats(0.01, 1.0), epsilon=st.floats(0.0, 0.45))
def test_conservative_is_least_where_the_policy_says_one_minus_epsilon(seed, beta, epsilon):
    policy, reference = drawn(seed), drawn(seed + 1)
    loss = dpo(policy, reference, beta, "conservative", epsilon).per_example
    floor = 0.0 if epsilon == 0 else -(epsilon * math.log(epsilon) + (1 - epsilon) * math.log(1 - epsilon))
    assert bool((loss >= floor - 1e-9).all())


def test_ipo_is_zero_at_its_target_and_knows_lengths():
    beta, tokens = 0.25, torch.tensor([4, 10])
    zero = torch.zeros(2, dtype=torch.float64)
    reference = PairLogps(zero, zero, tokens, tokens)
    at_target = PairLogps(tokens / (2 * beta), zero, tokens, tokens)  # 1 / (2β) per token
    assert dpo(at_target, reference, beta, "ipo").per_example.tolist() == pytest.approx([0.0, 0.0])
    summed = PairLogps(zero + 1 / (2 * beta), zero, tokens, tokens)
    assert dpo(summed, reference, beta, "ipo", ipo_normalise="sum").per_example.tolist() == pytest.approx([0, 0])


LOSSES = {
    **{kind: lambda p, r, kind=kind: dpo(p, r, 0.1, kind, smoothing(kind, 0.1)) for kind in ("sigmoid", "robust")},
    "orpo": lambda p, r: orpo(p),
    "simpo": lambda p, r: simpo(p),
    "cpo": lambda p, r: cpo(p),
}


@settings(max_examples=20, deadline=None)
@given(seed=seeds, name=st.sampled_from(sorted(LOSSES)))
def test_gradients_raise_the_chosen_and_lower_the_rejected(seed, name):
    policy, reference = drawn(seed), drawn(seed + 1)
    chosen, rejected = (x.clone().requires_grad_() for x in policy[:2])
    out = LOSSES[name](PairLogps(chosen, rejected, *policy[2:]), reference)
    up, down = torch.autograd.grad(out.per_example.sum(), (chosen, rejected))
    assert bool((up <= 0).all() and (down >= 0).all())
    assert not any(value.requires_grad for value in out.metrics.values())


def test_the_margin_of_dpo_does_not_say_that_the_chosen_answer_became_likelier():
    """Both may fall: the reason why chosen and rejected log-probabilities are reported apart."""
    tokens = torch.ones(1, dtype=torch.int64)
    reference = PairLogps(torch.tensor([-10.0]), torch.tensor([-10.0]), tokens, tokens)
    both_fell = PairLogps(torch.tensor([-40.0]), torch.tensor([-90.0]), tokens, tokens)
    out = dpo(both_fell, reference)
    assert out.per_example.item() < 0.01 and out.metrics["rewards/accuracies"].item() == 1
    assert out.metrics["rewards/chosen"].item() == pytest.approx(-3.0)
    assert out.metrics["logps/chosen"].item() == -40.0


@settings(max_examples=30, deadline=None)
@given(seed=seeds, beta=betas, kl=st.floats(0, 5))
def test_kto_is_a_step_around_its_reference_point(seed, beta, kl):
    g = torch.Generator().manual_seed(seed)
    policy, reference = torch.randn(2, 8, generator=g, dtype=torch.float64)
    desirable = torch.rand(8, generator=g) < 0.5
    out = kto(policy, reference, desirable, torch.tensor(kl, dtype=torch.float64), beta)
    sign = torch.where(desirable, 1.0, -1.0)
    expected = 1 - torch.sigmoid(sign * beta * (policy - reference - kl))
    torch.testing.assert_close(out.per_example, expected)
    assert len(out.metrics["rewards/chosen"]) == int(desirable.sum())
    assert len(out.metrics["rewards/rejected"]) == 8 - int(desirable.sum())


def test_the_reference_point_of_kto_is_never_negative_and_has_no_gradient():
    policy = torch.tensor([-5.0, -7.0], requires_grad=True)
    assert kto_kl(policy, torch.tensor([-6.0, -7.0])).item() == 0.5
    assert kto_kl(policy, torch.tensor([-1.0, -1.0])).item() == 0.0
    assert not kto_kl(policy, torch.zeros(2)).requires_grad
    assert kto_kl(torch.zeros(0), torch.zeros(0)).item() == 0.0


@pytest.mark.parametrize("x", [-1e-12, -1e-3, -0.5, -LN2, -0.8, -3.0, -40.0])
def test_log1mexp_to_full_precision(x):
    value = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = _log1mexp(value)
    expected = math.log(-math.expm1(x)) if x > -LN2 else math.log1p(-math.exp(x))
    assert found.item() == pytest.approx(expected, rel=1e-14)
    (slope,) = torch.autograd.grad(found, value)
    assert slope.item() == pytest.approx(-1 / math.expm1(-x), rel=1e-9)


def test_orpo_of_an_answer_that_is_certain_stays_finite():
    tokens = torch.ones(2, dtype=torch.int64)
    chosen = torch.tensor([0.0, -1.0], requires_grad=True)
    out = orpo(PairLogps(chosen, torch.tensor([-1.0, 0.0]), tokens, tokens))
    assert torch.isfinite(out.per_example).all()
    assert torch.isfinite(torch.autograd.grad(out.per_example.sum(), chosen)[0]).all()


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda p: dpo(p, p, beta=0.0), "beta"),
        (lambda p: dpo(p, p, beta=math.nan), "beta"),
        (lambda p: dpo(p, p, label_smoothing=0.1), "label_smoothing"),
        (lambda p: dpo(p, p, kind="robust", label_smoothing=0.5), "label_smoothing"),
        (lambda p: dpo(p, p, kind="sigmod"), "kind"),
        (lambda p: dpo(p, p, kind="ipo", ipo_normalise="mean"), "ipo_normalise"),
        (lambda p: cpo(p, kind="ipo"), "kind"),
        (lambda p: cpo(p, kind="hinge", label_smoothing=0.1), "label_smoothing"),
        (lambda p: simpo(p, beta=-1.0), "beta"),
    ],
)
def test_constants_that_no_loss_has_are_refused_by_name(call, field):
    with pytest.raises(UsageError) as caught:
        call(drawn(0))
    assert caught.value.field == field and caught.value.remedy


def test_means_of_an_answer_without_tokens_are_zero():
    none = torch.zeros(1, dtype=torch.int64)
    empty: Tensor = torch.zeros(1)
    assert PairLogps(empty, empty, none, none).means()[0].item() == 0.0
