"""Packing: which piece of which document goes in which row of a batch. Nothing is lost and nothing is read twice.

A document longer than the context is cut into pieces of exactly that length and a rest. Whole pieces are rows by
themselves; the rests are packed best-fit-decreasing: the longest first, each into the row with the least room that
still holds it (Johnson 1973; for language models Ding et al. 2024, "Fewer Truncations Improve Language Modeling").
"""

from __future__ import annotations

import bisect
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dacheng.data.shards import TokenShards
from dacheng.errors import DamagedFile, UsageError

Mode = Literal["best-fit", "concatenated"]
_ARRAYS: dict[str, Any] = {
    "shard": np.int32,
    "start": np.int64,
    "length": np.int32,
    "continues": np.bool_,
    "row_offsets": np.int64,
}


@dataclass(frozen=True, eq=False)
class PackingIndex:
    """Pieces in the order of their rows: row r holds the pieces row_offsets[r] to row_offsets[r + 1].

    Piece p is `length[p]` tokens of shard `shard[p]` from token `start[p]` on. `continues[p]`: the token after it in
    the shard is the target of its last one (a document that was cut goes on there). `mode` "best-fit": attention and
    positions begin anew with each piece; "concatenated": one piece a row, which may run over many documents.
    """

    context_length: int
    mode: Mode
    pad_id: int
    shard: npt.NDArray[np.int32] = field(repr=False)
    start: npt.NDArray[np.int64] = field(repr=False)
    length: npt.NDArray[np.int32] = field(repr=False)
    continues: npt.NDArray[np.bool_] = field(repr=False)
    row_offsets: npt.NDArray[np.int64] = field(repr=False)
    statistics: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.row_offsets) - 1

    @cached_property
    def tokens(self) -> int:
        return int(self.length.sum(dtype=np.int64))

    @property
    def padding(self) -> int:
        """Positions that hold no token."""
        return self.rows * self.context_length - self.tokens

    @property
    def fill_rate(self) -> float:
        return self.tokens / (self.rows * self.context_length) if self.rows else 0.0

    @cached_property
    def fingerprint(self) -> str:
        """sha256 hex of the mode, the context and every array."""
        digest = hashlib.sha256(f"{self.mode} {self.context_length} {self.pad_id}".encode())
        for name, dtype in _ARRAYS.items():
            digest.update(np.ascontiguousarray(getattr(self, name), dtype).tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """One .npy an array, and packing.json. The folder must not exist: it is part of a directory that is written
        beside and renamed."""
        folder.mkdir(parents=True)
        for name, dtype in _ARRAYS.items():
            np.save(folder / f"{name}.npy", np.asarray(getattr(self, name), dtype), allow_pickle=False)
        values = {
            "context_length": self.context_length,
            "mode": self.mode,
            "pad_id": self.pad_id,
            "statistics": self.statistics,
            "fingerprint": self.fingerprint,
        }
        (folder / "packing.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, shards: TokenShards | None = None) -> PackingIndex:
        """The arrays are memory-mapped. With `shards`, checks that every piece lies within them and that no token is
        left out. Raises DamagedFile, naming the file, for anything that does not fit."""
        folder = Path(folder)
        try:
            values = json.loads((folder / "packing.json").read_text(encoding="utf-8"))
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
            index = cls(
                int(values["context_length"]), values["mode"], int(values["pad_id"]), **arrays,
                statistics=values["statistics"],
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise _damaged(f"it cannot be read: {error}", folder) from error
        if index.mode not in ("best-fit", "concatenated"):
            raise _damaged(f"no such packing: {index.mode!r}", folder)
        index._check(folder, values.get("fingerprint"))
        if shards is not None:
            index.check(shards, folder)
        return index

    def _check(self, folder: Path, fingerprint: str | None) -> None:
        for name, dtype in _ARRAYS.items():
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != dtype:
                found = f"{array.dtype} in {array.ndim} dimensions"
                raise _damaged(f"{found} in place of {np.dtype(dtype)} in one", folder / f"{name}.npy")
        if len({len(self.shard), len(self.start), len(self.length), len(self.continues)}) != 1:
            raise _damaged("the arrays differ in length", folder)
        if self.fingerprint != fingerprint:
            raise _damaged("the arrays are not those that were written", folder)

    def check(self, shards: TokenShards, where: Path | str = "packing") -> None:
        """Raises DamagedFile unless the pieces hold every token of `shards` exactly once, and no row is overfull."""
        offsets, length = np.asarray(self.row_offsets), np.asarray(self.length, np.int64)
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(length) or (np.diff(offsets) < 1).any():
            raise _damaged("the rows do not cover the pieces", where)
        if len(length) and (length.min() < 1 or np.add.reduceat(length, offsets[:-1]).max() > self.context_length):
            raise _damaged("a row holds more than its context, or a piece nothing", where)
        if len(length) and not 0 <= self.shard.min() <= self.shard.max() < len(shards):
            raise _damaged(f"a piece is of a shard that is not there (there are {len(shards)})", where)
        for number, shard in enumerate(shards):
            mine = np.flatnonzero(self.shard == number)
            order = mine[np.argsort(self.start[mine], kind="stable")]
            starts, ends = self.start[order], self.start[order] + length[order]
            seams = np.concatenate([[0], ends])
            if not np.array_equal(seams[:-1], starts) or seams[-1] != len(shard.tokens):
                raise _damaged(f"the pieces of shard {number} do not cover its tokens exactly once", where)
            if len(order) and self.continues[order[-1]]:
                raise _damaged(f"the last piece of shard {number} has its last target outside", where)


def _damaged(problem: str, where: Path | str) -> DamagedFile:
    return DamagedFile(
        f"the packing index is damaged: {problem}",
        field="path",
        value=str(where),
        remedy="tokenize the documents again",
    )


def pack(shards: TokenShards, context_length: int, *, mode: Mode = "best-fit", pad_id: int = 0) -> PackingIndex:
    """Assigns every token of `shards` to a row of `context_length` positions.

    Targets need no position of their own: where a piece goes on, its last target is read from the shard. Statistics:
    documents, documents_cut (longer than the context), pieces, rows, tokens, padding, fill_rate, and targets (tokens
    that some position is to predict).
    """
    if context_length < 2:
        raise UsageError("must be at least 2", field="context_length", value=context_length, remedy="for example 1024")
    if mode not in ("best-fit", "concatenated"):
        raise UsageError("no such packing", field="packing", value=mode, remedy="best-fit or concatenated")
    parts = [_pieces(number, shard, context_length, mode) for number, shard in enumerate(shards)]
    names = ("shard", "start", "length", "continues")
    pieces: dict[str, Any] = {
        name: np.concatenate([part[name] for part in parts] or [np.empty(0, _ARRAYS[name])]).astype(_ARRAYS[name])
        for name in names
    }
    if mode == "concatenated":
        row_of = np.arange(len(pieces["length"]))
    else:
        row_of = best_fit_decreasing(pieces["length"], context_length)
    order = np.argsort(row_of, kind="stable")
    rows = int(row_of.max()) + 1 if len(row_of) else 0
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows))]).astype(np.int64)
    index = PackingIndex(context_length, mode, pad_id, **{n: pieces[n][order] for n in names}, row_offsets=offsets)
    lengths = np.concatenate([shard.lengths for shard in shards] or [np.empty(0, np.int64)])
    index.statistics.update(
        documents=len(lengths),
        documents_cut=int((lengths > context_length).sum()),
        pieces=len(row_of),
        rows=index.rows,
        tokens=index.tokens,
        padding=index.padding,
        fill_rate=round(index.fill_rate, 6),
        targets=index.tokens - len(row_of) + int(index.continues.sum()),
    )
    return index


def _pieces(number: int, shard: Any, context_length: int, mode: Mode) -> dict[str, npt.NDArray[Any]]:
    """The pieces of one shard, in the order of its tokens."""
    starts, lengths = shard.starts, shard.lengths
    if mode == "concatenated":  # the whole shard as one document
        starts, lengths = np.zeros(1, np.int64), np.array([len(shard.tokens)], np.int64)
    counts = -(-lengths // context_length)  # 0 for an empty document
    document = np.repeat(np.arange(len(lengths)), counts)
    within = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    offset = within * context_length
    return {
        "shard": np.full(len(document), number, np.int32),
        "start": starts[document] + offset,
        "length": np.minimum(lengths[document] - offset, context_length),
        "continues": within < counts[document] - 1,
    }


def best_fit_decreasing(lengths: npt.NDArray[Any], capacity: int) -> npt.NDArray[np.int64]:
    """The row of each item, rows numbered from 0 in the order they are opened. Lengths from 1 to `capacity`.

    Equal to taking the items one at a time, longest first (equal ones in order), and looking for the row with the least
    room that holds it; but all items of one length are placed together, which leaves O(capacity) steps of bookkeeping
    whatever the number of items.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    by_length = np.asarray(lengths, np.int64)[order]
    ends = np.append(np.flatnonzero(np.diff(by_length)) + 1, len(order))  # where each run of equal lengths stops
    row_of = np.empty(len(order), np.int64)
    room = _Room(capacity)
    begin = 0
    for end in ends:
        while begin < end:
            rows, each = room.take(int(by_length[begin]), int(end) - begin)
            placed = min(len(rows) * each, end - begin)
            row_of[order[begin : begin + placed]] = np.repeat(rows, each)[:placed]
            begin += placed
    return row_of


class _Room:
    """Open rows by how much room they have left."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._opened = capacity, 0
        self._by_room: dict[int, list[int]] = {}
        self._rooms: list[int] = []  # sorted keys of _by_room

    def take(self, length: int, count: int) -> tuple[list[int], int]:
        """Rows for up to `count` items of `length`, and how many items go in each of them (in the last maybe fewer).

        All are of the tightest room that fits, or new. A row with room for several gets them one after another: what is
        left after one is tighter still, so best fit would come back to it.
        """
        place = bisect.bisect_left(self._rooms, length)
        room = self._rooms[place] if place < len(self._rooms) else self._capacity
        each = room // length
        wanted = -(-count // each)
        if place < len(self._rooms):
            open_rows = self._by_room[room]
            rows = open_rows[-wanted:]
            del open_rows[-wanted:]  # from the end: the rest of the list does not move
            if not open_rows:
                del self._by_room[room], self._rooms[place]
        else:
            rows = list(range(self._opened, self._opened + wanted))
            self._opened += wanted
        full, rest = divmod(min(len(rows) * each, count), each)
        self._put(rows[:full], room - each * length)
        if rest:
            self._put(rows[full:], room - rest * length)
        return rows, each

    def _put(self, rows: list[int], room: int) -> None:
        if rows and room:
            if room not in self._by_room:
                bisect.insort(self._rooms, room)
                self._by_room[room] = []
            self._by_room[room].extend(rows)
