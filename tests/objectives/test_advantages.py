"""Advantages: by their definitions, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dacheng.errors import UsageError
from dacheng.objectives.advantages import (
    all_equal,
    gae,
    group_advantages,
    reinforce,
    returns_to_go,
    rloo,
    spread,
    token_rewards,
    whiten,
)

seeds = st.integers(0, 10**6)


def drawn(seed: int, rows: int = 3, length: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """rewards, values, mask (some positions of which are a tool's)."""
    g = torch.Generator().manual_seed(seed)
    mask = (torch.rand(rows, length, generator=g) < 0.7).double()
    rewards, values = torch.randn(2, rows, length, generator=g, dtype=torch.float64)
    return rewards * mask, values, mask


def by_definition(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Schulman et al. 2016, eq. 11 to 16, term by term."""
    n = len(rewards)
    following = values[1:] + [0.0]
    delta = [rewards[t] + gamma * following[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]


@settings(max_examples=40, deadline=None)
@given(seed=seeds, gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_gae_by_its_definition_over_the_models_own_tokens(seed, gamma, lam):
    rewards, values, mask = drawn(seed)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row in range(len(mask)):
        own = mask[row] > 0
        expected = by_definition(rewards[row][own].tolist(), values[row][own].tolist(), gamma, lam)
        assert advantages[row][own].tolist() == pytest.approx(expected, abs=1e-9)
        torch.testing.assert_close(returns[row][own], (advantages + values)[row][own])
        assert not advantages[row][~own].any() and not returns[row][~own].any()


@settings(max_examples=20, deadline=None)
@given(seed=seeds, gamma=st.floats(0, 1))
def test_lambda_goes_from_one_step_to_the_whole_return(seed, gamma):
    rewards, values, _ = drawn(seed)
    mask = torch.ones_like(rewards)
    following = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], 1)
    one_step, _ = gae(rewards, values, mask, gamma, 0.0)
    torch.testing.assert_close(one_step, rewards + gamma * following - values)
    whole, returns = gae(rewards, values, mask, gamma, 1.0)
    torch.testing.assert_close(returns, returns_to_go(rewards, mask, gamma))
    torch.testing.assert_close(whole, returns - values)


def test_a_critic_that_is_right_leaves_no_advantage():
    rewards, mask = torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1, 3)
    advantages, _ = gae(rewards, torch.ones(1, 3), mask, 1.0, 0.9)
    assert not advantages.any()


@settings(max_examples=20, deadline=None)
@given(seed=seeds, scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_whitening_forgets_scale_and_place(seed, scale, shift):
    values, _, mask = drawn(seed)
    if mask.sum() < 2:
        return
    found = whiten(values, mask)
    kept = found[mask > 0]
    assert kept.mean().item() == pytest.approx(0.0, abs=1e-9)
    if values[mask > 0].std() > 1e-2:
        assert kept.std().item() == pytest.approx(1.0, abs=1e-3)
        torch.testing.assert_close(whiten(values * scale + shift, mask), found, rtol=1e-3, atol=1e-4)
    assert not found[mask == 0].any()


def test_whitening_of_one_and_of_none_is_zero_not_nan():
    values = torch.tensor([[3.0, 4.0]])
    assert whiten(values, torch.tensor([[1.0, 0.0]])).tolist() == [[0.0, 0.0]]
    assert whiten(values, torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]
    assert whiten(values, torch.ones(1, 2), shift_mean=False).mean().item() == pytest.approx(3.5)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, coefficient=st.floats(0, 1), kind=st.sampled_from(["k1", "k2", "k3"]))
def test_rewards_of_tokens_sum_to_the_score_minus_the_penalty(seed, coefficient, kind):
    logps, reference, mask = drawn(seed)
    scores = torch.randn(3, generator=torch.Generator().manual_seed(seed))
    found = token_rewards(scores, mask, logps, reference, coefficient, kind)
    bare = token_rewards(scores, mask)
    for row in range(3):
        own = mask[row].nonzero().flatten().tolist()
        if own:
            assert bare[row, own[-1]].item() == pytest.approx(scores[row].item())
        assert bare[row].count_nonzero() == (1 if own and scores[row] else 0)
    d = logps - reference
    penalty = {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) + d - 1}[kind] * mask
    torch.testing.assert_close(found.double(), bare - coefficient * penalty, rtol=1e-5, atol=1e-6)


def test_a_penalty_needs_both_log_probabilities():
    with pytest.raises(UsageError, match="log-probabilities of policy and reference"):
        token_rewards(torch.ones(1), torch.ones(1, 2), kl_coef=0.1)


# --- groups -----------------------------------------------------------------------------------------------------------
def answers(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(12, generator=g, dtype=torch.float64), torch.randint(4, (12,), generator=g) * 7


@settings(max_examples=40, deadline=None)
@given(seed=seeds, scale=st.sampled_from(["std", "batch", "none"]))
def test_of_a_group_nothing_but_differences_counts(seed, scale):
    rewards, groups = answers(seed)
    found = group_advantages(rewards, groups, scale)
    offset = groups.double() * 3 - 5  # another one for each group
    if scale != "batch":
        torch.testing.assert_close(group_advantages(rewards + offset, groups, scale), found, rtol=1e-6, atol=1e-9)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(group_advantages(rewards[order], groups[order], scale), found[order])
    assert torch.equal(group_advantages(rewards, [f"q{g}" for g in groups.tolist()], scale), found)
    for group in groups.unique():
        assert found[groups == group].sum().item() == pytest.approx(0.0, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, factor=st.floats(0.1, 100))
def test_the_scale_of_a_reward_matters_only_where_nothing_divides_it(seed, factor):
    rewards, groups = answers(seed)
    for scale in ("std", "batch"):
        plain, scaled = (group_advantages(rewards * f, groups, scale, eps=0.0) for f in (1.0, factor))
        alone = torch.isnan(plain) | torch.isnan(scaled)  # 0 / 0 without eps
        torch.testing.assert_close(scaled[~alone], plain[~alone], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(
        group_advantages(rewards * factor, groups, "none"), factor * group_advantages(rewards, groups, "none")
    )


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_rloo_is_the_distance_from_the_others(seed):
    rewards, groups = answers(seed)
    found = rloo(rewards, groups)
    for i in range(12):
        others = [rewards[j].item() for j in range(12) if j != i and groups[j] == groups[i]]
        expected = rewards[i].item() - sum(others) / len(others) if others else 0.0
        assert found[i].item() == pytest.approx(expected, abs=1e-9)


def test_groups_that_teach_nothing():
    rewards, groups = torch.tensor([1.0, 1.0, 0.0, 1.0, 5.0]), ["a", "a", "b", "b", "c"]
    assert group_advantages(rewards, groups)[[0, 1, 4]].tolist() == [0.0, 0.0, 0.0]
    assert rloo(rewards, groups)[[0, 1, 4]].tolist() == [0.0, 0.0, 0.0]
    assert all_equal(rewards, groups).tolist() == [True, True, False, False, True]
    assert group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_dividing_by_the_spread_favours_what_is_nearly_always_right():
    """Liu et al. 2025: one failure in eight weighs as much as four, until the spread is left out."""
    easy, even = torch.tensor([1.0] * 7 + [0.0]), torch.tensor([1.0] * 4 + [0.0] * 4)
    one = torch.zeros(8, dtype=torch.int64)
    assert group_advantages(easy, one)[-1] < 2 * group_advantages(even, one)[-1]
    assert group_advantages(easy, one, "none")[0] < group_advantages(even, one, "none")[0]


def test_reinforce_takes_off_a_baseline():
    rewards = torch.tensor([1.0, 0.0, 2.0])
    assert reinforce(rewards).tolist() == [0.0, -1.0, 1.0]
    assert reinforce(rewards, "none").tolist() == [1.0, 0.0, 2.0]
    assert reinforce(rewards, 0.5).tolist() == [0.5, -0.5, 1.5]


def test_an_answers_advantage_is_that_of_each_of_its_tokens():
    mask = torch.tensor([[0.0, 1, 1], [1, 0, 0]])
    assert spread(torch.tensor([2.0, -1.0]), mask).tolist() == [[0.0, 2, 2], [-1, 0, 0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("function", [group_advantages, rloo, lambda r, g: reinforce(r), all_equal])
def test_a_reward_that_is_no_number_is_refused(function, bad):
    with pytest.raises(UsageError, match="not finite"):
        function(torch.tensor([0.0, bad]), torch.zeros(2, dtype=torch.int64))


def test_as_many_groups_as_rewards():
    with pytest.raises(UsageError, match="2 rewards need as many groups"):
        group_advantages(torch.zeros(2), ["a"])
    with pytest.raises(UsageError, match="no such scale"):
        group_advantages(torch.zeros(2), ["a", "a"], "variance")
