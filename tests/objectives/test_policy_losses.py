"""Policy losses: exact expectations over all outcomes, the clip's corners, and what must not change them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dacheng.errors import UsageError
from dacheng.objectives.policy import aggregate, importance, kl, ppo_policy, ppo_value, token_sum

seeds = st.integers(0, 10**6)
WAYS = ("token", "seq_mean", "seq_sum", "const")


def drawn(seed: int, rows: int = 4, length: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log-probabilities, old ones, advantages, mask."""
    g = torch.Generator().manual_seed(seed)
    logps = -torch.randn(rows, length, generator=g, dtype=torch.float64).abs()
    old = logps + 0.5 * torch.randn(rows, length, generator=g, dtype=torch.float64)
    advantages = torch.randn(rows, 1, generator=g, dtype=torch.float64).expand(rows, length)
    return logps.requires_grad_(), old, advantages, (torch.rand(rows, length, generator=g) < 0.7).double()


# --- expectations: one token of V, each outcome weighted with its probability --------------------------------------
def distributions(seed: int, V: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(V, generator=g, dtype=torch.float64).requires_grad_()
    return logits, torch.randn(V, generator=g, dtype=torch.float64).log_softmax(0)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_estimates_of_kl_against_the_exact_one(seed):
    logits, reference = distributions(seed)
    log_p = logits.log_softmax(0)
    p = log_p.exp().detach()
    exact = (log_p.exp() * (log_p - reference)).sum()
    mean = {kind: (p * kl(log_p, reference, kind)).sum() for kind in ("k1", "k2", "k3")}
    assert mean["k1"].item() == pytest.approx(exact.item(), abs=1e-9)
    assert mean["k3"].item() == pytest.approx(exact.item(), abs=1e-9)
    assert bool((kl(log_p, reference, "k3") >= 0).all() and (kl(log_p, reference, "k2") >= 0).all())

    def slope(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    torch.testing.assert_close(slope(mean["k1"]), torch.zeros_like(logits), atol=1e-9, rtol=0)
    torch.testing.assert_close(slope(mean["k2"]), slope(exact), atol=1e-9, rtol=1e-7)
    backward = (reference.exp() * (reference - log_p)).sum()  # KL(reference ‖ policy)
    torch.testing.assert_close(slope(mean["k3"]), slope(backward), atol=1e-9, rtol=1e-7)


def spread_of(seed: int, distance: float) -> dict[str, float]:
    """Standard deviations of the unbiased estimates, for a reference at this distance in log-probabilities."""
    logits, direction = distributions(seed)
    log_p = logits.detach().log_softmax(0)
    reference = (log_p + distance * direction).log_softmax(0)
    exact = (log_p.exp() * (log_p - reference)).sum()
    return {
        kind: (log_p.exp() * (kl(log_p, reference, kind) - exact).square()).sum().sqrt().item() for kind in ("k1", "k3")
    }


def test_k3_is_the_steadier_estimate_near_the_reference_and_not_always_far_from_it():
    near, far = ([spread_of(seed, distance) for seed in range(50)] for distance in (0.1, 3.0))
    assert all(s["k3"] < 0.25 * s["k1"] for s in near)
    assert any(s["k3"] > s["k1"] for s in far)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, clip=st.floats(0.0, 0.5), baseline=st.floats(-3, 3))
def test_the_gradient_is_that_of_the_expected_reward_and_a_baseline_leaves_it(seed, clip, baseline):
    logits, rewards = distributions(seed)
    log_p = logits.log_softmax(0)
    wanted = torch.autograd.grad(-(log_p.exp() * rewards).sum(), logits, retain_graph=True)[0]
    logps = log_p.unsqueeze(1)  # each outcome is a rollout of one token
    for level in ("token", "sequence"):
        out = ppo_policy(
            logps, logps.detach(), (rewards - baseline).unsqueeze(1), torch.ones_like(logps), clip, clip, None, level
        )
        found = torch.autograd.grad((logps.exp().detach() * out.per_token).sum(), logits, retain_graph=True)[0]
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-7)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_weights_undo_that_another_policy_drew_the_tokens(seed):
    logits, sampler = distributions(seed)
    log_p = logits.log_softmax(0)
    rewards = torch.linspace(-1, 1, len(log_p), dtype=torch.float64)
    weights = importance(log_p.unsqueeze(1), sampler.unsqueeze(1), cap=1e9).squeeze(1)
    corrected = (sampler.exp() * weights * rewards).sum()
    assert corrected.item() == pytest.approx((log_p.exp() * rewards).sum().item(), abs=1e-9)
    assert not weights.requires_grad


# --- the clip ---------------------------------------------------------------------------------------------------------
CORNERS = [  # ratio, advantage, loss, whether anything is left to learn
    (1.1, 2.0, -2.2, True),
    (1.5, 2.0, -2.4, False),  # already likelier by more than 0.2
    (0.5, 2.0, -1.0, True),  # a good one that became rare is called back
    (0.9, -2.0, 1.8, True),
    (0.5, -2.0, 1.6, False),  # already rarer by more than 0.2
    (1.5, -2.0, 3.0, True),  # a bad one that became likelier is pushed down, without a bound …
    (9.0, -2.0, 6.0, False),  # … up to the dual clip of 3
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "learns"), CORNERS)
def test_corners_of_the_clip(ratio, advantage, loss, learns):
    logps = torch.tensor([[math.log(ratio) - 1.0]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    out = ppo_policy(logps, one - 2.0, advantage * one, one, 0.2, 0.2, dual_clip=3.0)
    assert out.per_token.item() == pytest.approx(loss)
    assert bool(torch.autograd.grad(out.per_token.sum(), logps)[0]) == learns
    clipped = out.metrics["clip_ratio/region_mean"].item() + out.metrics["clip_ratio/dual_mean"].item()
    assert bool(clipped) != learns


def test_a_higher_upper_clip_lets_a_rare_token_grow():
    """DAPO's clip-higher: of the same ratio, one loss is flat and the other is not."""
    logps = torch.tensor([[math.log(1.25)]], requires_grad=True)
    one = torch.ones(1, 1)
    flat, free = (ppo_policy(logps, 0 * one, one, one, 0.2, high).per_token.sum() for high in (0.2, 0.28))
    assert torch.autograd.grad(flat, logps)[0].item() == 0
    assert torch.autograd.grad(free, logps)[0].item() == pytest.approx(-1.25)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_a_sequences_ratio_is_the_geometric_mean_of_its_tokens(seed):
    logps, old, advantages, mask = drawn(seed)
    out = ppo_policy(logps, old, advantages, mask, 0.9, 9.0, level="sequence")
    ratio = ((logps - old) * mask).sum(1).div(mask.sum(1).clamp(min=1)).exp()
    torch.testing.assert_close(out.per_token, -advantages * ratio.unsqueeze(1).expand_as(mask))
    # eq. 10 of the paper: the gradient of the ratio itself, shared evenly by its tokens
    found = torch.autograd.grad(aggregate(out.per_token, mask, "seq_mean"), logps)[0]
    own = -(advantages[:, 0] * ratio * (mask.sum(1) > 0)).mean()
    torch.testing.assert_close(found, torch.autograd.grad(own, logps)[0])


@settings(max_examples=20, deadline=None)
@given(seed=seeds, level=st.sampled_from(["token", "sequence"]), how=st.sampled_from(WAYS))
def test_what_is_outside_of_the_mask_counts_in_nothing_not_even_as_nan(seed, level, how):
    logps, old, advantages, mask = drawn(seed)
    if not mask.any():
        return
    dirty = torch.where(mask > 0, old, math.nan)
    losses = []
    for before in (old, dirty):
        out = ppo_policy(logps, before, advantages, mask, level=level)
        loss = aggregate(out.per_token, mask, how, 24.0 if how == "const" else None)
        losses.append((loss, torch.autograd.grad(loss, logps)[0]))
    for clean, found in zip(*losses):
        torch.testing.assert_close(found, clean)
    assert not losses[0][1][mask == 0].any()


def test_a_policy_that_ran_away_is_large_not_infinite():
    one = torch.ones(1, 2)
    logps = torch.tensor([[0.0, 0.0]], requires_grad=True)
    out = ppo_policy(logps, -500 * one, torch.tensor([[0.0, -1.0]]), one)
    assert torch.isfinite(out.per_token).all() and out.per_token[0, 0] == 0
    assert torch.isfinite(kl(-500 * one, logps, "k3")).all()


# --- from tokens to a number ------------------------------------------------------------------------------------------
@settings(max_examples=20, deadline=None)
@given(seed=seeds, how=st.sampled_from(WAYS))
def test_parts_add_up_to_the_whole(seed, how):
    values, _, _, mask = drawn(seed)
    parts = sum(token_sum(values[i : i + 1], mask[i : i + 1], how) for i in range(4))
    torch.testing.assert_close(parts, token_sum(values, mask, how))
    denom = {"token": mask.sum(), "const": 24.0}.get(how, 4)
    torch.testing.assert_close(aggregate(values, mask, how, denom), parts / torch.as_tensor(denom).clamp(min=1))


def test_who_weighs_how_much():
    """An answer of one token and one of four, the same loss in each token: 1 and 3."""
    values = torch.tensor([[1.0, 0, 0, 0], [3.0, 3, 3, 3]])
    mask = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]])
    found = {how: aggregate(values, mask, how, 8 if how == "const" else None).item() for how in WAYS}
    assert found == pytest.approx({"token": 13 / 5, "seq_mean": 2.0, "seq_sum": 6.5, "const": 13 / 8})


@pytest.mark.parametrize("how", ["token", "seq_mean", "seq_sum"])
def test_nothing_counted_is_zero(how):
    assert aggregate(torch.full((2, 3), math.nan), torch.zeros(2, 3), how).item() == 0.0


def test_the_clip_of_values_takes_the_worse_of_two():
    old, returns, mask = torch.zeros(1, 3), torch.ones(1, 3), torch.ones(1, 3)
    values = torch.tensor([[0.5, 0.1, 2.5]], requires_grad=True)
    out = ppo_value(values, old, returns, mask, 0.2)
    assert out.per_token.flatten().tolist() == pytest.approx([0.32, 0.405, 1.125])  # .5·.8², .5·.9², .5·1.5²
    assert out.metrics["val/clipfrac_avg"].flatten().tolist() == [1.0, 0.0, 0.0]
    slope = torch.autograd.grad(out.per_token.sum(), values)[0].flatten().tolist()
    assert slope == pytest.approx([0.0, -0.9, 1.5])  # what already moved far towards the return stops
    plain = ppo_value(values, old, returns, mask, None).per_token
    torch.testing.assert_close(plain, 0.5 * (values - returns).square())


def test_weights_of_tokens_and_of_answers_cut_or_left_out():
    trainer, sampler = (
        torch.log(torch.tensor([[0.8, 0.3], [0.2, 0.9]])),
        torch.log(torch.tensor([[0.2, 0.3], [0.4, 0.9]])),
    )
    mask = torch.ones(2, 2)
    assert importance(trainer, sampler, 2.0).tolist() == [pytest.approx([2.0, 1.0]), pytest.approx([0.5, 1.0])]
    masked = importance(trainer, sampler, 2.0, mode="mask")
    assert masked.tolist() == [pytest.approx([0.0, 1.0]), pytest.approx([0.5, 1.0])]
    answers = importance(trainer, sampler, 9.0, mask, level="sequence")
    assert answers.shape == (2, 1) and answers.flatten().tolist() == pytest.approx([4.0, 0.5])


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda x: aggregate(x, x, "mean"), "how"),
        (lambda x: aggregate(x, x, "const"), "denom"),
        (lambda x: ppo_policy(x, x, x, x, dual_clip=1.1), "dual_clip"),
        (lambda x: ppo_policy(x, x, x, x, level="batch"), "level"),
        (lambda x: kl(x, x, "k4"), "kind"),
        (lambda x: importance(x, x, 2.0, level="sequence"), "mask"),
        (lambda x: importance(x, x, 0.0), "cap"),
        (lambda x: importance(x, x, 1.0, mode="drop"), "mode"),
    ],
)
def test_ways_that_do_not_exist_are_refused_by_name(call: Any, field: str):
    with pytest.raises(UsageError) as caught:
        call(torch.ones(2, 3))
    assert caught.value.field == field
