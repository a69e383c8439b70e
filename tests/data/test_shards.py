"""Token shards: Megatron's bytes, whole or absent, and no number of a damaged file is believed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.data.shards import ShardWriter, TokenShard, TokenShards, token_dtype
from dacheng.errors import DachengError, DamagedFile

# Written down from the format, not from our writer: three documents [1, 2], [], [515], uint16.
GOLDEN_BIN = bytes.fromhex("0100 0200 0302")
GOLDEN_IDX = bytes.fromhex(
    "4d4d494449445800 00"  # "MMIDIDX" and two zero bytes
    "0100000000000000"  # version 1
    "08"  # uint16
    "0300000000000000"  # 3 sequences
    "0400000000000000"  # 4 document bounds
    "02000000 00000000 01000000"  # lengths in tokens
    "0000000000000000 0400000000000000 0400000000000000"  # where each begins, in bytes
    "0000000000000000 0100000000000000 0200000000000000 0300000000000000"  # bounds, in sequences
)


def write(prefix: Path, documents, dtype=np.uint16) -> dict:
    writer = ShardWriter(prefix, dtype)
    for ids in documents:
        writer.add(ids)
    return writer.finish()


def test_golden_bytes(tmp_path):
    entry = write(tmp_path / "a", [[1, 2], [], [515]])
    assert (tmp_path / "a.bin").read_bytes() == GOLDEN_BIN
    assert (tmp_path / "a.idx").read_bytes() == GOLDEN_IDX
    assert (entry["name"], entry["tokens"], entry["documents"]) == ("a", 3, 3)


def test_other_writers_files_are_read(tmp_path):
    """Two sequences in the first document, as Megatron makes when it splits sentences; and a multimodal index."""
    bounds = "0000000000000000 0200000000000000 0300000000000000"
    idx = GOLDEN_IDX[:26] + (3).to_bytes(8, "little") + GOLDEN_IDX[34:70] + bytes.fromhex(bounds)
    (tmp_path / "a.bin").write_bytes(GOLDEN_BIN)
    for tail in (b"", b"\0\0\0"):
        (tmp_path / "a.idx").write_bytes(idx + tail)
        shard = TokenShard.open(tmp_path / "a")
        assert [shard.document(i).tolist() for i in range(len(shard))] == [[1, 2], [515]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 65499), max_size=20), max_size=20), st.sampled_from([np.uint16, np.int32]))
def test_round_trip(documents, dtype):
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "a"), documents, dtype)
        shard = TokenShard.open(Path(folder, "a"))
        assert [shard.document(i).tolist() for i in range(len(shard))] == documents
        assert len(shard.tokens) == sum(map(len, documents))
        assert sorted(path.name for path in Path(folder).iterdir()) == ["a.bin", "a.idx"]


@pytest.mark.parametrize(
    ("dtype", "ids"), [(np.uint16, [65536]), (np.uint16, [-1]), (np.int32, [2**31]), (np.int8, [200])]
)
def test_an_id_that_would_wrap_round_is_refused(tmp_path, dtype, ids):
    writer = ShardWriter(tmp_path / "a", dtype)
    with pytest.raises(DachengError, match="does not fit") as caught:
        writer.add([1, *ids])
    assert caught.value.value == ids[0]
    writer.abandon()
    assert not list(tmp_path.iterdir())


def test_the_type_is_megatrons_choice():
    assert [token_dtype(size) for size in (258, 65499, 65500, 2**20)] == [np.uint16, np.uint16, np.int32, np.int32]
    with pytest.raises(DachengError, match="not a type"):
        ShardWriter(Path("a"), np.float32)


def test_nothing_appears_before_finish(tmp_path):
    writer = ShardWriter(tmp_path / "a", np.uint16)
    writer.add([1, 2, 3])
    assert not (tmp_path / "a.bin").exists() and not (tmp_path / "a.idx").exists()
    writer.finish()
    assert (tmp_path / "a.bin").exists() and (tmp_path / "a.idx").exists()


def golden(folder: Path, idx: bytes = GOLDEN_IDX, data: bytes = GOLDEN_BIN) -> Path:
    (folder / "a.idx").write_bytes(idx)
    (folder / "a.bin").write_bytes(data)
    return folder / "a"


def test_every_truncation_is_recognised(tmp_path):
    for size in range(len(GOLDEN_IDX)):
        with pytest.raises(DamagedFile):
            TokenShard.open(golden(tmp_path, idx=GOLDEN_IDX[:size]))
    for size in range(len(GOLDEN_BIN)):
        with pytest.raises(DamagedFile):
            TokenShard.open(golden(tmp_path, data=GOLDEN_BIN[:size]))
    with pytest.raises(DamagedFile, match="ends at byte 6 of 8"):
        TokenShard.open(golden(tmp_path, data=GOLDEN_BIN + b"\0\0"))


def test_every_flipped_bit_of_the_index_is_recognised(tmp_path):
    """All but those that make another valid index: a bound moved over the empty second document, a dtype as wide."""
    survived = []
    prefix = golden(tmp_path)
    for position in range(len(GOLDEN_IDX)):
        for bit in range(8):
            flipped = bytearray(GOLDEN_IDX)
            flipped[position] ^= 1 << bit
            (tmp_path / "a.idx").write_bytes(flipped)
            try:
                shard = TokenShard.open(prefix)
            except DamagedFile:
                continue
            survived.append((position, bit))
            assert sum(len(shard.document(i)) for i in range(len(shard))) == 3
    # Bounds 1 and 2 of 0, 1, 2, 3 at bytes 78 and 86: 1->0, 1->... stay sorted.
    assert all(position in (78, 86) for position, _ in survived), survived


def test_absurd_counts_allocate_nothing(tmp_path):
    for offset in (18, 26):
        idx = bytearray(GOLDEN_IDX)
        idx[offset : offset + 8] = (2**62).to_bytes(8, "little")
        with pytest.raises(DamagedFile, match="need"):
            TokenShard.open(golden(tmp_path, idx=bytes(idx)))
    pointers = bytearray(GOLDEN_IDX)
    pointers[54:62] = (2**63 - 2).to_bytes(8, "little")  # adding a length to it would wrap round
    with pytest.raises(DamagedFile, match="outside"):
        TokenShard.open(golden(tmp_path, idx=bytes(pointers)))


def test_missing_files(tmp_path):
    with pytest.raises(DachengError, match="no such token shard"):
        TokenShard.open(tmp_path / "absent")
    golden(tmp_path)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(DamagedFile, match="missing"):
        TokenShard.open(tmp_path / "a")


def test_fingerprints_follow_content(tmp_path):
    from dacheng.data.shards import shard_digest

    one, two, three = (write(tmp_path / n, docs) for n, docs in (("a", [[1], [2]]), ("b", [[1], [2]]), ("c", [[1, 2]])))
    opened = [TokenShards.open([tmp_path / n]).fingerprint for n in "abc"]
    assert opened[0] == opened[1] != opened[2]  # the same tokens, but other documents
    recorded = TokenShards.open([tmp_path / "a"], [shard_digest(one["idx_sha256"], one["bin_sha256"])])
    assert recorded.fingerprint == opened[0]
    assert (
        TokenShards.open([tmp_path / "a", tmp_path / "c"]).fingerprint
        != TokenShards.open([tmp_path / "c", tmp_path / "a"]).fingerprint
    )
    assert two["bin_sha256"] == three["bin_sha256"]
