import numpy as np
import pytest

from dacheng.errors import UsageError
from dacheng.evaluate.intervals import bootstrap_mean, bootstrap_ratio, paired_difference, wilson


def test_bootstrap_of_a_mean_matches_the_normal_interval():
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    interval = bootstrap_mean(values, resamples=4000)
    error = values.std(ddof=1) / 20
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert (interval.n, interval.level) == (400, 0.95)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        sizes = generator.integers(50, 500, 60).astype(float)
        rates = generator.normal(2.0, 0.3, 60)
        interval = bootstrap_ratio(sizes * rates, sizes, resamples=300, seed=trial, level=0.9)
        covered += interval.low <= 2.0 <= interval.high
    assert 165 <= covered <= 195  # 180 of 200 expected, standard deviation 4.2


def test_seed_decides_and_chunks_do_not_matter_for_validity(monkeypatch):
    values = np.random.default_rng(2).normal(size=50)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    whole = bootstrap_mean(values, seed=3)
    monkeypatch.setattr("dacheng.evaluate.intervals._CHUNK", 120)
    assert bootstrap_mean(values, seed=3) == whole


def test_a_ratio_weighs_units_by_their_denominators():
    interval = bootstrap_ratio([10.0, 1.0], [10.0, 0.5])
    assert interval.estimate == pytest.approx(11 / 10.5)
    assert interval.low == pytest.approx(1.0)
    assert interval.high == pytest.approx(2.0)


def test_paired_difference_is_narrower_than_two_intervals():
    generator = np.random.default_rng(5)
    hard = generator.normal(1000, 300, 80)
    sizes = np.full(80, 500.0)
    first, second = hard + generator.normal(0, 5, 80), hard + 10 + generator.normal(0, 5, 80)
    difference = paired_difference(first, second, sizes)
    alone = bootstrap_ratio(first, sizes)
    assert difference.high < 0  # clearly lower, although the two intervals overlap by far
    assert bootstrap_ratio(second, sizes).low < alone.high
    assert difference.high - difference.low < 0.1 * (alone.high - alone.low)
    assert difference.estimate == pytest.approx((first.sum() - second.sum()) / sizes.sum())


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_newcombes_table(successes, n, low, high):
    interval = wilson(successes, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
    mirrored = wilson(n - successes, n)
    assert mirrored.low == pytest.approx(1 - interval.high)


@pytest.mark.parametrize(
    "make",
    [
        lambda: wilson(1, 0),
        lambda: wilson(3, 2),
        lambda: wilson(-1, 2),
        lambda: wilson(1, 2, level=1.0),
        lambda: bootstrap_mean([1.0]),
        lambda: bootstrap_ratio([1.0, 2.0], [1.0]),
        lambda: bootstrap_ratio([1.0, 2.0], [1.0, 0.0]),
        lambda: bootstrap_mean([1.0, 2.0], resamples=0),
        lambda: bootstrap_mean([1.0, 2.0], level=0.0),
        lambda: paired_difference([1.0, 2.0], [1.0, 2.0, 3.0]),
    ],
)
def test_wrong_use_is_refused(make):
    with pytest.raises(UsageError):
        make()
