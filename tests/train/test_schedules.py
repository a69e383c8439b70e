import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacheng.errors import UsageError
from dacheng.train.schedules import ScheduleConfig, factor

KINDS = ("constant", "linear", "cosine", "wsd")


@given(
    kind=st.sampled_from(KINDS),
    shape=st.sampled_from(("linear", "1-sqrt")),
    total=st.integers(1, 400),
    warmup=st.one_of(st.floats(0, 0.99), st.integers(1, 50)),
    decay=st.floats(0.01, 0.99),
    final=st.floats(0, 1),
)
def test_every_step_learns_and_none_passes_the_peak(kind, shape, total, warmup, decay, final):
    config = ScheduleConfig(kind=kind, warmup=warmup, final=final, decay=decay, decay_shape=shape)
    factors = [factor(config, step, total) for step in range(total)]
    assert all(0.0 < f <= 1.0 + 1e-12 for f in factors)
    after = factors[max(0, round(warmup if warmup >= 1 else warmup * total)) :]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(after)), "rises after the warmup"


@pytest.mark.parametrize("kind", KINDS)
def test_warmup_rises_from_one_over_its_length(kind):
    config = ScheduleConfig(kind=kind, warmup=10, final=0.0, decay=0.2)
    assert [factor(config, step, 100) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(config, 10, 100) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
def test_the_end_reaches_the_final_factor(kind):
    config = ScheduleConfig(kind=kind, warmup=0.0, final=0.25, decay=0.5)
    assert factor(config, 200, 200) == pytest.approx(0.25)
    assert 0.25 < factor(config, 199, 200) < 0.27


def test_halfway_values():
    assert factor(ScheduleConfig("cosine", 0, 0.0), 50, 100) == pytest.approx(0.5)
    assert factor(ScheduleConfig("linear", 0, 0.2), 50, 100) == pytest.approx(0.6)
    assert factor(ScheduleConfig("cosine", 0, 0.0), 25, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_wsd_is_flat_until_the_decay():
    config = ScheduleConfig("wsd", warmup=5, final=0.0, decay=0.2)
    assert {factor(config, step, 100) for step in range(5, 81)} == {1.0}
    assert factor(config, 90, 100) == pytest.approx(0.5)
    root = ScheduleConfig("wsd", warmup=5, final=0.0, decay=20, decay_shape="1-sqrt")
    assert factor(root, 85, 100) == pytest.approx(0.5)  # a quarter of the decay: 1 - sqrt(0.25)


def test_a_run_of_one_step():
    assert all(factor(ScheduleConfig(kind), 0, 1) == 1.0 for kind in KINDS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "step"),
        ("decay_shape", "cubic"),
        ("warmup", -1.0),
        ("decay", math.nan),
        ("final", 1.5),
        ("final", -0.1),
    ],
)
def test_nonsense_is_refused_by_name(field, value):
    with pytest.raises(UsageError) as caught:
        ScheduleConfig(**{field: value})
    assert caught.value.field == field
