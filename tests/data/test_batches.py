"""Batches: tokens, targets and positions to the last element; and a step's rows are a function of the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.data.batches import IGNORED, PackedSource, Source, TokenBatch, read_rows
from dacheng.data.order import permutation, splitmix64
from dacheng.data.packing import pack
from dacheng.errors import DachengError, UsageError
from tests.data.conftest import shards_in_memory

FIRST_ORDER = [0, 7, 2, 5, 4, 6, 3, 1]  # by SplitMix64 in plain Python
document_lengths = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=3)


def source(lengths=((5, 30, 7, 3), (9, 12, 1)), context_length=8, mode="best-fit", **options) -> PackedSource:
    shards = shards_in_memory(*lengths)
    options = {"batch_rows": 4, "seed": 1} | options
    return PackedSource(shards, pack(shards, context_length, mode=mode, pad_id=7777), **options)


def rows_of(batches: list[TokenBatch]) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in batches for row in batch.tokens.tolist()]


def test_one_batch_by_hand():
    """Documents of 3, 10 and 4 tokens (ids 0-2, 3-12, 13-16) in rows of 8: the long one is cut into 8 and 2."""
    made = source([(3, 10, 4)], batch_rows=2)
    batch = read_rows(made.shards, made.packing, [0, 1])
    cut, rest = 0, 1
    assert batch.tokens[cut].tolist() == [3, 4, 5, 6, 7, 8, 9, 10]
    assert batch.targets[cut].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]  # 11 is in another row, and still the last target
    assert batch.tokens[rest].tolist() == [0, 1, 2, 13, 14, 15, 16, 7777]
    assert batch.targets[rest].tolist() == [1, 2, IGNORED, 14, 15, 16, IGNORED, IGNORED]
    assert batch.positions[rest].tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert batch.document_ids is not None
    assert batch.document_ids[rest].tolist() == [0, 0, 0, 1, 1, 1, 1, -1]
    assert batch.document_ids[cut].tolist() == [0] * 8
    assert batch.tokens_in_loss == 8 + 5
    third = read_rows(made.shards, made.packing, [2])
    assert third.tokens[0].tolist() == [11, 12, 7777, 7777, 7777, 7777, 7777, 7777]
    assert third.targets[0].tolist() == [12] + [IGNORED] * 7
    assert third.document_ids is None  # one piece a row: plain causal attention is the same


def test_concatenated_rows_run_over_documents():
    batch = source([(3, 10, 4)], mode="concatenated").rows(np.arange(3))
    order = batch.tokens[:, 0].argsort()
    assert batch.tokens[order].flatten().tolist() == list(range(17)) + [7777] * 7
    assert batch.targets[order].flatten().tolist() == list(range(1, 17)) + [IGNORED] * 8
    assert batch.document_ids is None and batch.positions[order][1].tolist() == list(range(8))


@settings(max_examples=80, deadline=None)
@given(document_lengths, st.integers(2, 13), st.sampled_from(["best-fit", "concatenated"]), st.integers(0, 3))
def test_an_epoch_has_every_token_once_and_every_target_is_the_next_token(lengths, context_length, mode, epoch):
    made = source(lengths, context_length, mode, batch_rows=1)
    n = made.packing.rows
    batch = made.rows(np.arange(epoch * n, (epoch + 1) * n))
    real = batch.tokens != 7777
    assert sorted(batch.tokens[real].tolist()) == list(range(made.shards.tokens))
    has_target = batch.targets != IGNORED
    assert not (has_target & ~real).any()
    # Ids count up through the corpus, so the next token is the id plus one.
    assert torch.equal(batch.targets[has_target], batch.tokens[has_target] + 1)
    ends = np.cumsum([length for shard in lengths for length in shard])
    if mode == "best-fit":
        assert set(batch.tokens[real & ~has_target].tolist()) == {int(end) - 1 for end in ends}
    else:
        assert set(batch.tokens[real & ~has_target].tolist()) == {int(e) - 1 for e in np.cumsum([*map(sum, lengths)])}
    assert batch.tokens_in_loss == made.packing.statistics["targets"]


@settings(max_examples=80, deadline=None)
@given(document_lengths, st.integers(2, 13))
def test_positions_reset_and_ids_change_where_a_piece_begins(lengths, context_length):
    made = source(lengths, context_length, batch_rows=1)
    batch = made.rows(np.arange(made.packing.rows))
    ids = torch.zeros_like(batch.tokens) if batch.document_ids is None else batch.document_ids
    begins = torch.ones_like(ids, dtype=torch.bool)
    if batch.document_ids is not None:
        begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    else:
        begins[:, 1:] = (batch.tokens[:, 1:] == 7777) & (batch.tokens[:, :-1] != 7777)
    assert (batch.positions[begins] == 0).all()
    assert torch.equal(batch.positions[:, 1:][~begins[:, 1:]], batch.positions[:, :-1][~begins[:, 1:]] + 1)
    inside = ~begins[:, 1:] & (batch.tokens[:, 1:] != 7777)
    assert torch.equal(
        batch.tokens[:, 1:][inside], batch.tokens[:, :-1][inside] + 1
    )  # a piece is a run of one document


# --- order and resume -------------------------------------------------------------------------------------------------
def test_the_order_is_fixed_for_ever():
    """The published first outputs of SplitMix64 from seed 1234567, and an order that a checkpoint may rely on."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    states = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * golden
    assert splitmix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert permutation(8, 0, 0).tolist() == FIRST_ORDER
    assert permutation(8, 0, 1).tolist() != FIRST_ORDER != permutation(8, 1, 0).tolist()


@given(st.integers(0, 300), st.integers(-5, 2**63), st.integers(0, 100))
def test_a_permutation_has_each_number_once(count, seed, epoch):
    assert sorted(permutation(count, seed, epoch).tolist()) == list(range(count))


def test_permutations_are_uniform():
    seen = {}
    for epoch in range(6000):
        key = tuple(permutation(3, 42, epoch).tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 6 and all(880 < count < 1120 for count in seen.values())  # 1000 ± 4 standard deviations


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(1, 9), st.integers(0, 5))
def test_a_step_read_alone_is_what_a_run_would_have_read(step, batch_rows, seed):
    running = source(batch_rows=batch_rows, seed=seed)
    for number in range(step + 1):
        expected = running.next(number)
    assert rows_of(source(batch_rows=batch_rows, seed=seed).next(step)) == rows_of(expected)
    epoch, row = running.position(step)
    assert epoch * running.packing.rows + row == step * batch_rows


def test_epochs_follow_each_other_without_gap_or_repeat():
    made = source(batch_rows=3)
    n = made.packing.rows
    rows = [row for step in range(n) for row in rows_of(made.next(step))]  # three epochs; steps lie across their ends
    epochs = [rows[i * n : (i + 1) * n] for i in range(3)]
    assert all(len(set(epoch)) == n for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert made.steps_per_epoch == n / 3 and made.tokens_per_step == 24


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 1), (1, 4), (2, 1), (2, 3), (4, 3), (12, 1)])
def test_a_steps_rows_are_the_same_however_they_are_shared_out(world, micro_batches):
    for step in (0, 5):
        whole = rows_of(source(batch_rows=12).next(step))
        shares = [
            source(batch_rows=12, micro_batches=micro_batches, rank=rank, world=world).next(step)
            for rank in range(world)
        ]
        assert all(len(share) == micro_batches for share in shares)
        assert sorted(row for share in shares for row in rows_of(share)) == sorted(whole)
        assert {batch.tokens.shape for share in shares for batch in share} == {(12 // world // micro_batches, 8)}


def test_resume_with_other_ranks_and_another_batch_size():
    first = source(batch_rows=4, world=2, micro_batches=2)
    for step in range(3):
        first.next(step)
    state = first.state_dict()
    same = source(batch_rows=4)
    same.load_state_dict(state)
    assert rows_of(same.next(3)) == rows_of(source(batch_rows=4).next(3))
    larger = source(batch_rows=6)
    larger.load_state_dict(state)
    sequence = [row for step in range(9) for row in rows_of(source(batch_rows=4).next(step))]
    assert rows_of(larger.next(3)) + rows_of(larger.next(4)) == sequence[12:24]
    with pytest.raises(UsageError, match="before the first row"):
        larger.next(0)


@pytest.mark.parametrize(
    "other", [{"seed": 2}, {"context_length": 9}, {"lengths": ((5, 31), (9,))}, {"mode": "concatenated"}]
)
def test_a_state_of_other_data_is_refused(other):
    state = source().state_dict()
    source(batch_rows=2).load_state_dict(state)
    with pytest.raises(DachengError, match="other data") as caught:
        source(**other).load_state_dict(state)
    assert caught.value.field == "data.fingerprint"


def test_geometry_that_does_not_divide_names_one_that_does():
    with pytest.raises(UsageError, match="evenly") as caught:
        source(batch_rows=10, micro_batches=2, world=2)
    assert "8" in (caught.value.remedy or "") or "12" in (caught.value.remedy or "")
    with pytest.raises(UsageError, match="rank"):
        source(rank=1)
    with pytest.raises(UsageError, match="positive"):
        source(batch_rows=0)
    with pytest.raises(DachengError, match="no tokens"):
        source([(0,)])


def test_protocol_and_device():
    made = source()
    assert isinstance(made, Source)
    batch = made.next(0)[0]
    moved = batch.to("meta")
    assert moved.tokens.device.type == "meta" and moved.tokens.shape == batch.tokens.shape
    assert (moved.document_ids is None) == (batch.document_ids is None)
