import math
import random

import pytest

from dacheng.errors import UsageError
from dacheng.plan.scaling import ScalingLaw, fit

TRUE = ScalingLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28, rms=0.0, n=0)  # Hoffmann et al. 2022, eq. 10
RUNS = [(n, n * ratio) for n in (1e6, 3e6, 1e7, 3e7, 1e8, 3e8) for ratio in (5, 20, 80)]


def runs(noise=0.0, seed=0):
    generator = random.Random(seed)
    losses = [TRUE.loss(n, d) * math.exp(generator.gauss(0, noise)) for n, d in RUNS]
    return [n for n, _ in RUNS], [d for _, d in RUNS], losses


def test_recovers_the_law_that_made_the_runs():
    law = fit(*runs())
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(law, name) == pytest.approx(getattr(TRUE, name), rel=1e-3)
    assert law.rms < 1e-6
    assert law.n == len(RUNS)


def test_noise_and_one_failed_run_move_it_little():
    params, tokens, losses = runs(noise=0.003)
    losses[4] *= 1.5  # diverged
    law = fit(params, tokens, losses)
    assert law.alpha == pytest.approx(TRUE.alpha, abs=0.04)
    assert law.beta == pytest.approx(TRUE.beta, abs=0.04)
    assert law.loss(1e9, 2e10) == pytest.approx(TRUE.loss(1e9, 2e10), rel=0.01)
    assert law.rms > 0.05  # the failed run shows


def test_optimum_is_where_the_loss_is_lowest_and_spends_the_flops():
    params, tokens = TRUE.optimum(1e21)
    assert 6 * params * tokens == pytest.approx(1e21)
    best = TRUE.loss(params, tokens)
    for factor in (0.8, 1.25):
        assert TRUE.loss(params * factor, tokens / factor) > best
    assert TRUE.optimum(1e23)[0] / params == pytest.approx(100 ** (0.28 / 0.62))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda p, t, l: (p[:5], t[:5], l[:5]), "six runs"),
        (lambda p, t, l: (p[:-1], t, l), "six runs"),
        (lambda p, t, l: ([1e6] * len(p), t, l), "params"),
        (lambda p, t, l: (p, [1e9] * len(t), l), "tokens"),
        (lambda p, t, l: (p, t, [*l[:-1], float("nan")]), "losses"),
        (lambda p, t, l: (p, t, [*l[:-1], 0.0]), "losses"),
    ],
)
def test_runs_that_cannot_be_fitted_are_refused(change, match):
    with pytest.raises(UsageError, match=match):
        fit(*change(*runs()))
