"""The inverse of a layer's Hessian, as GPTQ and SparseGPT walk through it: its upper Cholesky factor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dacheng.errors import DachengError

DAMP = 0.01
TRIES = 3


class InverseFactor(NamedTuple):
    """upper (in, in): U with H⁻¹ = Uᵀ U. dead (in,): inputs that were always 0. damp: share of the mean diagonal that
    was added at last; raised: how often it had to be raised tenfold."""

    upper: Tensor
    dead: Tensor
    damp: float
    raised: int


def inverse_factor(hessian: Tensor, damp: float = DAMP, tries: int = TRIES) -> InverseFactor | None:
    """hessian (in, in) = c · Σ x xᵀ. None when H + damp · mean(diag H) · I is not positive definite even with the
    damping raised tenfold `tries` times (Frantar et al. 2022, section 3.3, step 3).

    Raises DachengError when the Hessian is not finite.
    """
    h = hessian.float().clone()
    check_finite(h)
    diagonal = h.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1  # such an input is never seen: its weights are free
    mean = diagonal.mean()
    for raised in range(tries + 1):
        damped = h.clone()
        damped.diagonal().add_(damp * 10**raised * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(torch.isfinite(upper).all()):
                return InverseFactor(upper, dead, damp * 10**raised, raised)
    return None


def check_finite(statistic: Tensor, name: str = "hessian") -> None:
    if not bool(torch.isfinite(statistic).all()):
        raise DachengError(
            "the activations of the calibration text are not finite", field=name, value="NaN or infinity",
            remedy="check the model's weights, and calibrate in float32",
        )  # fmt: skip
