"""The chunked head against torch's own cross-entropy on whole logits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.objectives.cross_entropy import IGNORED, linear_cross_entropy


def reference(hidden, weight, targets, soft_cap, z_loss):
    logits = hidden @ weight.t()
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    nats = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    z = logits.logsumexp(-1)[targets != IGNORED].square().sum()
    return nats, nats + z_loss * z, z


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 40),
    chunk=st.integers(1, 50),
    soft_cap=st.sampled_from([None, 5.0]),
    z_loss=st.sampled_from([0.0, 1e-2]),
    masked=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_equal_the_whole_logits(n, chunk, soft_cap, z_loss, masked, seed):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 8, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(17, 8, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 17, (n,), generator=g)
    targets[torch.rand(n, generator=g) < masked] = IGNORED
    nats, with_z, z = reference(hidden, weight, targets, soft_cap, z_loss)
    expected = torch.autograd.grad(with_z * 3, (hidden, weight))
    ours, ours_z = linear_cross_entropy(hidden, weight, targets, soft_cap=soft_cap, z_loss=z_loss, chunk=chunk)
    found = torch.autograd.grad(ours * 3, (hidden, weight))
    assert ours.item() == pytest.approx(nats.item(), rel=1e-5, abs=1e-5)
    assert ours_z.item() == pytest.approx(z.item(), rel=1e-5, abs=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_nothing_to_predict_is_zero_not_nan():
    hidden = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(9, 8, requires_grad=True)
    nats, _ = linear_cross_entropy(hidden, weight, torch.full((4,), IGNORED))
    nats.backward()
    assert nats.item() == 0.0
    assert hidden.grad is not None and not hidden.grad.any()
    assert weight.grad is not None and not weight.grad.any()


def test_without_gradient_nothing_is_kept():
    with torch.no_grad():
        nats, _ = linear_cross_entropy(torch.zeros(3, 8), torch.zeros(5, 8), torch.tensor([0, 1, 2]))
    assert nats.item() == pytest.approx(3 * math.log(5))


def test_autocast_keeps_gradients_in_float32():
    hidden = torch.randn(16, 8, requires_grad=True)
    weight = torch.randn(9, 8, requires_grad=True)
    targets = torch.arange(16) % 9
    exact, _ = linear_cross_entropy(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = linear_cross_entropy(hidden, weight, targets)
    rounded.backward()
    assert rounded.item() == pytest.approx(exact.item(), rel=2e-2)
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32
    assert weight.grad is not None and weight.grad.dtype == torch.float32
