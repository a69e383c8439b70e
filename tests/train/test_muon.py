import pytest
import torch

from dacheng.errors import UsageError
from dacheng.train.muon import Muon, orthogonalize, update_scale


def conditioned(rows: int, columns: int, condition: float, seed: int = 0) -> torch.Tensor:
    """A random matrix whose singular values run evenly (in logarithm) over `condition`."""
    torch.manual_seed(seed)
    rank = min(rows, columns)
    u, _ = torch.linalg.qr(torch.randn(rows, rank))
    v, _ = torch.linalg.qr(torch.randn(columns, rank))
    return u @ torch.diag(torch.logspace(0, -torch.tensor(condition).log10().item(), rank)) @ v.mT


@pytest.mark.parametrize("shape", [(48, 48), (32, 96), (96, 32)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_polar_express_brings_singular_values_near_one(shape, scale):
    values = torch.linalg.svdvals(orthogonalize(conditioned(*shape, condition=100) * scale))
    assert values.min() > 0.85 and values.max() < 1.15


def test_the_quintic_brings_them_into_its_band():
    values = torch.linalg.svdvals(orthogonalize(conditioned(48, 64, 30), 5, "quintic"))
    assert values.min() > 0.65 and values.max() < 1.25


@pytest.mark.parametrize("method", ["polar_express", "quintic"])
def test_the_result_points_where_the_polar_factor_does(method):
    matrix = conditioned(40, 60, 30)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    ours = orthogonalize(matrix, 5, method)
    assert torch.nn.functional.cosine_similarity(ours.flatten(), (u @ vh).flatten(), dim=0) > 0.985


def test_a_batch_equals_its_matrices_and_a_tall_one_its_transpose():
    batch = torch.stack([conditioned(24, 56, 50, seed) for seed in range(3)])
    together = orthogonalize(batch)
    for matrix, result in zip(batch, together):
        torch.testing.assert_close(orthogonalize(matrix), result, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(orthogonalize(matrix.mT).mT, result, atol=1e-5, rtol=1e-5)


def test_a_zero_gradient_gives_a_zero_update():
    assert torch.equal(orthogonalize(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_scales():
    assert update_scale(torch.Size([64, 16]), "spectral") == pytest.approx(2.0)
    assert update_scale(torch.Size([16, 64]), "spectral") == 1.0
    assert update_scale(torch.Size([64, 16]), "rms") == pytest.approx(0.2 * 8)


def test_rms_scale_gives_updates_as_large_as_adamw():
    """An orthogonal (m, n) matrix has RMS 1/sqrt(max(m, n)): times 0.2·sqrt(max) that is 0.2, as AdamW's typically."""
    update = orthogonalize(conditioned(32, 128, 20)) * update_scale(torch.Size([32, 128]), "rms")
    assert update.square().mean().sqrt() == pytest.approx(0.2, rel=0.08)


def reference_step(w, g, buffer, lr, momentum, decay, cautious):
    """Jordan's update written out for one matrix, with an SVD instead of the polynomial's approximation removed."""
    buffer = momentum * buffer + (1 - momentum) * g
    update = orthogonalize((1 - momentum) * g + momentum * buffer)
    mask = (update * w >= 0).float() if cautious else torch.ones_like(w)
    scale = max(1.0, w.shape[0] / w.shape[1]) ** 0.5
    return w - lr * decay * w * mask - lr * scale * update, buffer


@pytest.mark.parametrize("cautious", [False, True])
def test_steps_follow_the_formula(cautious):
    torch.manual_seed(1)
    weights = [torch.nn.Parameter(torch.randn(12, 8)) for _ in range(3)] + [torch.nn.Parameter(torch.randn(8, 12))]
    expected = [(w.detach().clone(), torch.zeros_like(w)) for w in weights]
    optimizer = Muon(weights, lr=0.05, momentum=0.9, weight_decay=0.1, cautious=cautious)
    for _ in range(3):
        for i, w in enumerate(weights):
            w.grad = torch.randn_like(w)
            expected[i] = reference_step(expected[i][0], w.grad, expected[i][1], 0.05, 0.9, 0.1, cautious)
        optimizer.step()
    for w, (value, buffer) in zip(weights, expected):
        torch.testing.assert_close(w.detach(), value, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(optimizer.state[w]["momentum_buffer"], buffer, atol=1e-6, rtol=1e-5)


def test_a_stack_of_matrices_is_updated_as_its_members():
    torch.manual_seed(2)
    stack = torch.nn.Parameter(torch.randn(3, 6, 10))
    singles = [torch.nn.Parameter(stack.detach()[i].clone()) for i in range(3)]
    stack.grad = torch.randn_like(stack)
    for i, single in enumerate(singles):
        single.grad = stack.grad[i].clone()
    Muon([stack]).step()
    Muon(singles).step()
    torch.testing.assert_close(stack.detach(), torch.stack([s.detach() for s in singles]), atol=1e-6, rtol=1e-6)


def test_a_parameter_without_a_gradient_stays():
    still, moving = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))
    moving.grad = torch.randn(4, 4)
    Muon([still, moving], weight_decay=0.5).step()
    assert torch.equal(still.detach(), torch.ones(4, 4)) and not torch.equal(moving.detach(), torch.ones(4, 4))


def test_what_is_no_matrix_is_refused():
    with pytest.raises(UsageError, match="Muon is for matrices"):
        Muon([torch.nn.Parameter(torch.ones(4))])
    with pytest.raises(UsageError, match="1 to 5"):
        orthogonalize(torch.eye(3), steps=6)
    with pytest.raises(UsageError) as caught:
        Muon([torch.nn.Parameter(torch.ones(4, 4))], scale="big")
    assert caught.value.field == "muon_scale"
