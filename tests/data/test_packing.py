"""Packing: every token once, no row overfull, as tight as best fit one at a time; and its file."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.data.packing import PackingIndex, best_fit_decreasing, pack
from dacheng.errors import DamagedFile, UsageError
from tests.data.conftest import shards_in_memory

document_lengths = st.lists(st.lists(st.integers(0, 40), max_size=25), min_size=1, max_size=3)


def contents(index: PackingIndex, shards) -> list[list[list[int]]]:
    """Token ids by row and piece."""
    rows = []
    for first, last in zip(index.row_offsets, index.row_offsets[1:]):
        pieces = [(index.shard[p], index.start[p], index.length[p]) for p in range(first, last)]
        rows.append([shards[s].tokens[start : start + length].tolist() for s, start, length in pieces])
    return rows


@settings(max_examples=80, deadline=None)
@given(document_lengths, st.integers(2, 17), st.sampled_from(["best-fit", "concatenated"]))
def test_every_token_is_in_exactly_one_row(lengths, context_length, mode):
    shards = shards_in_memory(*lengths)
    index = pack(shards, context_length, mode=mode)
    rows = contents(index, shards)
    assert sorted(t for row in rows for piece in row for t in piece) == list(range(shards.tokens))
    assert all(0 < sum(map(len, row)) <= context_length for row in rows)
    assert index.padding == index.rows * context_length - shards.tokens >= 0
    if mode == "concatenated":
        assert all(len(row) == 1 for row in rows)
        assert index.rows == sum(-(-sum(shard) // context_length) for shard in lengths)
    index.check(shards)


@settings(max_examples=80, deadline=None)
@given(document_lengths, st.integers(2, 17))
def test_pieces_stay_within_documents_and_go_on_only_where_one_was_cut(lengths, context_length):
    shards = shards_in_memory(*lengths)
    index = pack(shards, context_length)
    bounds = {
        (n, int(s)): int(s + le) for n, shard in enumerate(shards) for s, le in zip(shard.starts, shard.lengths) if le
    }
    ends = {(n, end) for (n, _), end in bounds.items()}
    for shard, start, length, goes_on in zip(index.shard, index.start, index.length, index.continues):
        inside = [s for (n, s), end in bounds.items() if n == shard and s <= start and start + length <= end]
        assert len(inside) == 1
        assert goes_on == ((shard, start + length) not in ends)
        assert (start - inside[0]) % context_length == 0
    statistics = index.statistics
    flat = [length for shard in lengths for length in shard]
    assert statistics["documents"] == len(flat)
    assert statistics["documents_cut"] == sum(length > context_length for length in flat)
    assert statistics["targets"] == sum(max(length - 1, 0) for length in flat)  # all but each document's first token


def one_at_a_time(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing by its definition."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fits = [row for row in rows if sum(row) + length <= capacity]
        if fits:
            max(fits, key=sum).append(length)
        else:
            rows.append([length])
    return rows


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=60), st.integers(30, 70))
def test_placing_equal_lengths_together_is_best_fit_decreasing(lengths, capacity):
    row_of = best_fit_decreasing(np.array(lengths, np.int64), capacity)
    ours: dict[int, list[int]] = {}
    for row, length in zip(row_of.tolist(), lengths):
        ours.setdefault(row, []).append(length)
    assert sorted(ours) == list(range(len(ours)))
    # Two rows with equal room are a tie that either may win, so rows are compared by how full they are.
    assert Counter(map(sum, ours.values())) == Counter(map(sum, one_at_a_time(lengths, capacity)))


def test_the_work_grows_with_the_lengths_not_with_the_documents(monkeypatch):
    from dacheng.data import packing

    steps = 0
    take = packing._Room.take

    def counted(self, length, count):
        nonlocal steps
        steps += 1
        return take(self, length, count)

    monkeypatch.setattr(packing._Room, "take", counted)
    lengths = np.random.RandomState(0).geometric(1 / 300, 300_000).clip(1, 2048)
    row_of = best_fit_decreasing(lengths, 2048)
    fill = np.bincount(row_of, weights=lengths)
    assert fill.max() <= 2048 and lengths.sum() / (len(fill) * 2048) > 0.999
    assert steps < 4 * 2048


def test_the_fill_rate_of_documents_like_real_ones():
    lengths = np.random.RandomState(1).lognormal(7, 1.2, 2000).astype(int) + 1
    index = pack(shards_in_memory(lengths.tolist()), 1024)
    assert index.fill_rate > 0.998
    assert index.fill_rate == index.tokens / (index.rows * 1024)


def test_nothing_to_pack_and_nothing_to_pack_it_in():
    empty = pack(shards_in_memory([0, 0]), 8)
    assert (empty.rows, empty.tokens, empty.fill_rate, empty.statistics["documents"]) == (0, 0, 0.0, 2)
    with pytest.raises(UsageError, match="at least 2"):
        pack(shards_in_memory([3]), 1)
    with pytest.raises(UsageError, match="no such packing"):
        pack(shards_in_memory([3]), 8, mode="worst-fit")  # type: ignore[arg-type]


# --- on disk ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lengths", [[[5, 30, 7], [9]], [[0]]])
def test_round_trip(tmp_path, lengths):
    shards = shards_in_memory(*lengths)
    index = pack(shards, 8, pad_id=3)
    index.save(tmp_path / "p")
    loaded = PackingIndex.load(tmp_path / "p", shards)
    assert loaded.fingerprint == index.fingerprint and loaded.statistics == index.statistics
    assert (loaded.context_length, loaded.mode, loaded.pad_id, loaded.rows) == (8, "best-fit", 3, index.rows)


def test_damage_is_recognised(tmp_path):
    shards = shards_in_memory([5, 30, 7], [9])
    for number, name in enumerate(("shard", "start", "length", "continues", "row_offsets")):
        folder = tmp_path / name
        pack(shards, 8).save(folder)
        data = bytearray((folder / f"{name}.npy").read_bytes())
        data[-1 - number] ^= 1
        (folder / f"{name}.npy").write_bytes(data)
        with pytest.raises(DamagedFile, match="not those that were written"):
            PackingIndex.load(folder)
        (folder / f"{name}.npy").write_bytes(data[:-3])
        with pytest.raises(DamagedFile, match=r"cannot be read|differ in length"):
            PackingIndex.load(folder)
        np.save(folder / f"{name}.npy", np.zeros((2, 2)))
        with pytest.raises(DamagedFile, match="dimensions"):
            PackingIndex.load(folder)
        np.save(folder / f"{name}.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
        with pytest.raises(DamagedFile, match="cannot be read"):  # objects are never unpickled
            PackingIndex.load(folder)


def test_an_index_of_other_shards_is_refused(tmp_path):
    pack(shards_in_memory([5, 30, 7], [9]), 8).save(tmp_path / "p")
    for other in (shards_in_memory([5, 30, 7]), shards_in_memory([5, 30, 8], [9]), shards_in_memory([5, 30, 7], [8])):
        with pytest.raises(DamagedFile, match="packing index"):
            PackingIndex.load(tmp_path / "p", other)


@pytest.mark.parametrize("change", [{"mode": "odd"}, {"context_length": "8"}, {"context_length": 7}, {"pad_id": None}])
def test_a_changed_description_is_refused(tmp_path, change):
    pack(shards_in_memory([5, 30, 7]), 8).save(tmp_path / "p")
    path = tmp_path / "p" / "packing.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change), encoding="utf-8")
    if change == {"context_length": "8"}:
        assert PackingIndex.load(tmp_path / "p").context_length == 8
        return
    with pytest.raises(DamagedFile):
        PackingIndex.load(tmp_path / "p")
