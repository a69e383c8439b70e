"""The product with a frozen map and its adapter, in one step: the numbers and gradients of the plain formula."""

from __future__ import annotations

import pytest
import torch

from dacheng.nn.frozen import frozen_product, low_rank_product
from dacheng.nn.linear import Dense
from dacheng.nn.packed import Packed
from dacheng.ops.qtensor import QTensor

R, SCALE = 4, 1.7


def parts(packed, bias, x_grad):
    generator = torch.Generator().manual_seed(0)
    base = Dense(64, 96, bias=bias)
    base.requires_grad_(False)
    if packed:
        base = Packed(QTensor.from_float(base.weight, "Q8_0"), base.bias)
    a = torch.randn(R, 64, generator=generator).requires_grad_()
    b = torch.randn(96, R, generator=generator).requires_grad_()
    x = torch.randn(2, 5, 64, generator=generator).requires_grad_(x_grad)
    return base, x, a, b


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("x_grad", [False, True])
def test_it_is_the_plain_formula(packed, bias, x_grad):
    base, x, a, b = parts(packed, bias, x_grad)
    plain = frozen_product(base, x) if x_grad or not packed else base._exact_linear(x, base.bias)
    plain = plain + SCALE * (x @ a.t()) @ b.t()
    weights = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    wanted = [p for p in (x, a, b) if p.requires_grad]
    expected = torch.autograd.grad((plain * weights).sum(), wanted)
    found = low_rank_product(base, x, a, b, SCALE)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    for one, other in zip(torch.autograd.grad((found * weights).sum(), wanted), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_its_derivative_in_float64():
    base = Dense(6, 5).double().requires_grad_(False)
    x, a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 6), (2, 6), (5, 2)))
    assert torch.autograd.gradcheck(lambda *given: low_rank_product(base, *given, 0.7), (x, a, b))
