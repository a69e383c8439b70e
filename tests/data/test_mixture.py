"""Mixtures: the proportions asked for, each source in its own order, and every draw a function of the step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.data.batches import PackedSource, Source
from dacheng.data.mixture import MixtureSource
from dacheng.data.order import DrawSchedule
from dacheng.data.packing import pack
from dacheng.errors import DachengError, UsageError
from tests.data.conftest import shards_in_memory

WEIGHTS = {"web": 6.0, "code": 3.0, "maths": 1.0}


def packed(number: int, **options) -> PackedSource:
    """A source whose shards hold only its own ids: 1000 · number and up."""
    shards = shards_in_memory([1000 * number], [5, 9, 30, 2, 6, 8, 3])
    packing = pack(shards_in_memory([0], [5, 9, 30, 2, 6, 8, 3]), 8)
    made = PackedSource(shards, packing, **({"batch_rows": 12, "seed": number} | options))
    return made


def mixture(by="row", seed=0, weights=WEIGHTS, **options) -> MixtureSource:
    return MixtureSource({n: (packed(i + 1, **options), w) for i, (n, w) in enumerate(weights.items())}, seed, by=by)


def origin(row: tuple[int, ...]) -> int:
    return max(row) // 1000


def rows_of(batches) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in batches for row in batch.tokens.tolist()]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 2**40), st.integers(0, 5000))
def test_counts_are_what_drawing_one_by_one_would_count(weights, seed, start):
    schedule = DrawSchedule({str(i): max(w, sum(weights) / 900) for i, w in enumerate(weights)}, seed)
    everything, before = schedule.draw(np.arange(start + 50))
    seen: Counter[int] = Counter()
    for source, count in zip(everything.tolist(), before.tolist()):
        assert count == seen[source]
        seen[source] += 1
    alone = schedule.draw(np.arange(start, start + 50))
    assert alone[0].tolist() == everything[start:].tolist() and alone[1].tolist() == before[start:].tolist()


def test_proportions_are_exact_in_every_thousand():
    schedule = DrawSchedule(WEIGHTS, 3)
    for block in (0, 1, 77):
        source, _ = schedule.draw(np.arange(block * 1000, (block + 1) * 1000))
        assert np.bincount(source).tolist() == [600, 300, 100]
    assert mixture().proportions == {"web": 0.6, "code": 0.3, "maths": 0.1}
    first, second = (DrawSchedule(WEIGHTS, seed).draw(np.arange(1000))[0].tolist() for seed in (3, 4))
    assert first != second
    thirds = DrawSchedule({"a": 1, "b": 1, "c": 1}, 0)
    assert sorted(thirds.quotas.tolist()) == [333, 333, 334]


@pytest.mark.parametrize("by", ["row", "step"])
def test_a_step_read_alone_is_what_a_run_would_have_read(by):
    running = mixture(by)
    sequence = [rows_of(running.next(step)) for step in range(20)]
    for step in (0, 7, 19):
        assert rows_of(mixture(by).next(step)) == sequence[step]


def test_rows_are_mixed_within_a_batch_and_each_source_keeps_its_order():
    made = mixture("row")
    rows = [row for step in range(50) for row in rows_of(made.next(step))]
    counts = Counter(map(origin, rows))
    assert counts[1] > counts[2] > counts[3] > 0
    for number in (1, 2, 3):
        mine = [row for row in rows if origin(row) == number]
        alone = packed(number)
        assert mine == rows_of([alone.rows(np.arange(len(mine)))])


def test_by_step_each_step_is_of_one_source():
    made = mixture("step")
    steps = [{origin(row) for row in rows_of(made.next(step))} for step in range(200)]
    assert all(len(found) == 1 for found in steps)
    assert Counter(found.pop() for found in steps).most_common(1)[0][0] == 1


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 3), (2, 2), (4, 1)])
@pytest.mark.parametrize("by", ["row", "step"])
def test_a_steps_rows_are_the_same_however_they_are_shared_out(by, world, micro_batches):
    for step in (0, 11):
        whole = sorted(rows_of(mixture(by).next(step)))
        shares = [mixture(by, rank=r, world=world, micro_batches=micro_batches).next(step) for r in range(world)]
        assert sorted(row for share in shares for row in rows_of(share)) == whole


@pytest.mark.parametrize("by", ["row", "step"])
def test_resume(by):
    running = mixture(by)
    for step in range(7):
        running.next(step)
    resumed = mixture(by, micro_batches=2)
    resumed.load_state_dict(running.state_dict())
    for step in range(7, 12):
        assert sorted(rows_of(resumed.next(step))) == sorted(rows_of(running.next(step)))


def test_resume_by_row_with_another_batch_size_reads_on_without_a_gap():
    running = mixture("row")
    sequence = [row for step in range(8) for row in rows_of(running.next(step))]
    half = mixture("row")
    for step in range(4):
        half.next(step)
    resumed = mixture("row", batch_rows=24)
    resumed.load_state_dict(half.state_dict())
    assert rows_of(resumed.next(4)) + rows_of(resumed.next(5)) == sequence[48:96]


@pytest.mark.parametrize("other", [{"seed": 1}, {"by": "step"}, {"weights": WEIGHTS | {"web": 5.0}}])
def test_a_state_of_another_mixture_is_refused(other):
    state = mixture().state_dict()
    with pytest.raises(DachengError, match="other data"):
        mixture(**other).load_state_dict(state)


def test_what_cannot_be_mixed():
    with pytest.raises(UsageError, match="never be drawn"):
        mixture(weights={"a": 1.0, "b": 1e-6})
    for weight in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="positive"):
            mixture(weights={"a": 1.0, "b": weight})
    with pytest.raises(UsageError, match="needs a source"):
        MixtureSource({})
    with pytest.raises(UsageError, match="tokens per step"):
        MixtureSource({"a": (packed(1), 1.0), "b": (packed(2, batch_rows=6), 1.0)})
    with pytest.raises(UsageError, match="agree in context and batch"):
        MixtureSource({"a": (packed(1), 1.0), "b": (packed(2, batch_rows=6), 1.0)}, by="row")
    with pytest.raises(UsageError, match="only packed sources"):
        MixtureSource({"a": (mixture(), 1.0)}, by="row")
    nested = MixtureSource({"a": (mixture(), 1.0), "b": (packed(9), 1.0)})  # by step any source will do
    assert isinstance(nested, Source) and nested.tokens_per_step == 96
