"""What the solvers promise of any matrix."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.compress.hessian import inverse_factor
from dacheng.compress.prune.magnitude import magnitude, magnitude_global
from dacheng.compress.prune.sparsegpt import sparsegpt
from dacheng.compress.prune.sparsity import Sparsity, nm_mask, share_of_zeros
from dacheng.compress.prune.wanda import wanda
from dacheng.errors import DachengError, UsageError


def drawn(seed, rows=6, width=16, tokens=200):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(rows, width, generator=generator), torch.randn(tokens, width, generator=generator) @ mix


def loss(weight, pruned, x):
    return float(((weight - pruned) @ x.T).square().sum())


@pytest.mark.parametrize(
    ("text", "ratio", "keep", "of"), [("0.5", 0.5, 0, 0), ("30%", 0.3, 0, 0), ("2:4", 0.5, 2, 4), ("1:4", 0.75, 1, 4)]
)
def test_sparsity_is_read(text, ratio, keep, of):
    assert Sparsity.parse(text) == Sparsity(ratio, keep, of)


@pytest.mark.parametrize("text", ["0", "1", "1.5", "4:4", "0:4", "5:4", "half", "nan", "-0.5", "2:4:8", ""])
def test_other_sparsities_are_refused(text):
    with pytest.raises(UsageError, match="sparsity"):
        Sparsity.parse(text)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), keep=st.integers(1, 3), groups=st.integers(1, 5))
def test_n_of_m_stay_in_every_group(seed, keep, groups):
    score = torch.randn(5, 4 * groups, generator=torch.Generator().manual_seed(seed))
    mask = nm_mask(score, keep, 4)
    assert (mask.unflatten(1, (-1, 4)).sum(-1) == keep).all()
    kept = score.masked_fill(~mask, math.inf).unflatten(1, (-1, 4)).amin(-1)
    gone = score.masked_fill(mask, -math.inf).unflatten(1, (-1, 4)).amax(-1)
    assert (kept >= gone).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), ratio=st.floats(0.1, 0.8))
def test_sparsegpt_prunes_as_much_as_it_was_told(seed, ratio):
    weight, x = drawn(seed)
    found = sparsegpt(weight, x.T @ x, Sparsity(ratio))
    assert abs(share_of_zeros(found.weight) - ratio) <= 1.5 / weight.shape[1]


@pytest.mark.parametrize(("ratio", "share"), [(0.25, 0.6), (0.5, 0.75), (0.75, 0.9)])
def test_sparsegpt_makes_up_for_what_it_prunes(ratio, share):
    """With its own mask, changing nothing else is worse as a rule. Not always, as columns are settled one after the
    other: up to 12% worse is seen here, where three quarters of an ill-conditioned matrix go."""
    shares = []
    for seed in range(20):
        weight, x = drawn(seed)
        found = sparsegpt(weight, x.T @ x, Sparsity(ratio))
        shares.append(loss(weight, found.weight, x) / loss(weight, weight * found.mask, x))
    assert max(shares) < 1.2 and sum(shares) / len(shares) < share


def test_one_pruned_weight_is_the_optimal_brain_surgeon():
    """Closed form (Hassibi & Stork 1993): δw = -w_q / [H⁻¹]_qq · H⁻¹ e_q, where the rest may all move."""
    weight, x = drawn(3, rows=1)
    hessian = (x.T @ x).double()
    inverse = hessian.inverse()
    first = (weight[0, 0] / inverse[0, 0] * inverse[0]).float()  # the first column: all others are to its right
    weight[0, 0] = 1e-6  # the one that goes
    expected = weight[0] - weight[0, 0] / inverse[0, 0].float() * inverse[0].float()
    found = sparsegpt(weight, hessian.float(), Sparsity(0.01), damp=0.0)
    assert first.shape == (16,) and found.weight[0, 0] == 0
    assert torch.allclose(found.weight[0], expected, atol=1e-6)


def test_order_of_methods_on_inputs_of_different_sizes():
    """Loss on the calibration inputs: SparseGPT < Wanda < magnitude."""
    weight, x = drawn(5, rows=64, width=64, tokens=500)
    x = x * torch.logspace(-1, 1, 64)
    half = Sparsity(0.5)
    by_magnitude = loss(weight, weight * magnitude(weight, half), x)
    by_wanda = loss(weight, weight * wanda(weight, x.square().sum(0), half), x)
    by_sparsegpt = loss(weight, sparsegpt(weight, x.T @ x, half).weight, x)
    assert by_sparsegpt < 0.9 * by_wanda < 0.9 * by_magnitude


def test_wanda_does_not_depend_on_how_much_text_there_was():
    weight, x = drawn(1)
    mask = wanda(weight, x.square().sum(0), Sparsity(0.5))
    assert torch.equal(mask, wanda(weight, x.square().mean(0), Sparsity(0.5)))


def test_inputs_that_never_come_are_pruned():
    weight, x = drawn(2)
    x[:, 3] = 0
    found = sparsegpt(weight, x.T @ x, Sparsity(0.25))
    assert (found.weight[:, 3] == 0).all() and not found.mask[:, 3].any()


def test_a_singular_hessian_is_damped_and_then_given_up():
    x = torch.ones(50, 8)
    damped = inverse_factor(x.T @ x)
    assert damped is not None and damped.raised == 0
    x = 3e18 * torch.ones(1, 8)  # damping by a hundredth is lost in float32, or overflows
    hessian = torch.full((8, 8), 1.0)
    hessian[0, 1] = hessian[1, 0] = 5.0  # not even semidefinite
    raised = inverse_factor(hessian, damp=0.1)
    assert raised is not None and raised.raised >= 1 and raised.damp == pytest.approx(0.1 * 10**raised.raised)
    found = sparsegpt(torch.randn(4, 8), hessian, Sparsity(0.5), damp=0.1)
    assert found.notes == [f"damping raised to {raised.damp:g}"]
    hessian[0, 1] = hessian[1, 0] = 5e4
    assert inverse_factor(hessian) is None
    weight = torch.randn(4, 8)
    found = sparsegpt(weight, hessian, Sparsity(0.5))
    assert "singular" in found.notes[0]
    assert torch.equal(found.weight, weight * magnitude(weight, Sparsity(0.5), "row"))


def test_bad_input_is_refused():
    weight, x = drawn(0)
    hessian = x.T @ x
    with pytest.raises(UsageError, match="no whole number of groups of 5"):
        wanda(weight, hessian.diagonal(), Sparsity.parse("2:5"))
    with pytest.raises(UsageError, match="groups of 5"):
        sparsegpt(weight, hessian, Sparsity.parse("2:5"))
    hessian[0, 0] = math.nan
    with pytest.raises(DachengError, match="not finite"):
        sparsegpt(weight, hessian, Sparsity(0.5))


def test_one_threshold_for_all_matrices():
    weights = {"small": 0.1 * torch.randn(8, 8), "large": torch.randn(8, 8)}
    masks = magnitude_global(weights, 0.5)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    assert sum(kept.values()) == 63 and kept["large"] > 2 * kept["small"]
