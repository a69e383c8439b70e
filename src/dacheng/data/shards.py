"""Token shards in the format of Megatron-LM's indexed dataset: .bin holds the token ids of documents one after another,
.idx says where each begins. Any Megatron-compatible reader takes them, and theirs are read here."""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from dacheng.data.files import sha256_file
from dacheng.errors import DachengError, DamagedFile

# The .idx file, little-endian: magic (9 bytes), version uint64 = 1, dtype code uint8, sequence count S uint64, document
# count D + 1 uint64, lengths int32[S] in tokens, pointers int64[S] in bytes, documents int64[D + 1]: the first sequence
# of each document, and S at the end. (A multimodal index has one int8 a sequence after that; it is accepted.)
MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, type[np.generic]] = {
    1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float32, 8: np.uint16,
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}

Tokens = npt.NDArray[Any]


def token_dtype(vocab_size: int) -> type[np.generic]:
    """The type Megatron chooses for a vocabulary: two bytes while it is below 65500, else four."""
    return np.uint16 if vocab_size < 65500 else np.int32


class ShardWriter:
    """Writes one shard, a document at a time. Nothing of that name exists until `finish` has flushed and renamed both
    files, .idx last: where it is there, its .bin is whole."""

    def __init__(self, prefix: Path, dtype: type[np.generic]) -> None:
        self.prefix, self._dtype = Path(prefix), np.dtype(dtype)
        if self._dtype.type not in CODES or self._dtype.kind == "f":
            raise DachengError("not a type for token ids", field="dtype", value=str(dtype), remedy="uint16 or int32")
        self._limits = np.iinfo(self._dtype)
        self._lengths = array("i")  # 4 bytes a document in memory
        self._digest = hashlib.sha256()
        self._bin: IO[bytes] = _partial(self.prefix, ".bin").open("wb")
        self.tokens = 0

    @property
    def documents(self) -> int:
        return len(self._lengths)

    def add(self, ids: Sequence[int] | Tokens) -> None:
        """Appends one document. Raises DachengError for an id that the type cannot hold: it would wrap round."""
        wide = np.asarray(ids, dtype=np.int64)
        if wide.size and not (self._limits.min <= wide.min() and wide.max() <= self._limits.max):
            raise DachengError(
                f"a token id does not fit {self._dtype}",
                field="dtype",
                value=int(wide.max() if wide.max() > self._limits.max else wide.min()),
                remedy="give the tokenizer's vocab_size when the type is chosen",
            )
        data = wide.astype(self._dtype.newbyteorder("<")).tobytes()
        self._bin.write(data)
        self._digest.update(data)
        self._lengths.append(wide.size)
        self.tokens += wide.size

    def finish(self) -> dict[str, Any]:
        """Makes the shard appear. Returns its entry for a manifest: name, tokens, documents, sha256 of both files."""
        index = _index_bytes(np.frombuffer(self._lengths, dtype=np.int32), self._dtype)
        with _partial(self.prefix, ".idx").open("wb") as file:
            file.write(index)
            _sync(file)
        _sync(self._bin)
        self._bin.close()
        for suffix in (".bin", ".idx"):
            _partial(self.prefix, suffix).replace(_path(self.prefix, suffix))
        digests = {"bin_sha256": self._digest.hexdigest(), "idx_sha256": hashlib.sha256(index).hexdigest()}
        return {"name": self.prefix.name, "tokens": self.tokens, "documents": self.documents, **digests}

    def abandon(self) -> None:
        """Removes what was written so far."""
        self._bin.close()
        for suffix in (".bin", ".idx"):
            _partial(self.prefix, suffix).unlink(missing_ok=True)


def _index_bytes(lengths: npt.NDArray[np.int32], dtype: np.dtype[Any]) -> bytes:
    ends = np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
    pointers = np.concatenate([np.zeros(min(len(ends), 1), np.int64), ends[:-1]])
    documents = np.arange(len(lengths) + 1, dtype=np.int64)
    head = HEADER.pack(MAGIC, 1, CODES[dtype.type], len(lengths), len(documents))
    return head + b"".join(
        part.astype(kind).tobytes() for part, kind in ((lengths, "<i4"), (pointers, "<i8"), (documents, "<i8"))
    )


def _path(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _partial(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(f".{prefix.name}{suffix}.partial")


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@dataclass(frozen=True, eq=False)
class TokenShard:
    """One memory-mapped shard. `tokens` (all ids), `starts` and `lengths` (documents; both in tokens, int64).

    targets: which of the tokens are to be predicted (bool, as many as tokens); None: all."""

    prefix: Path
    tokens: Tokens = field(repr=False)
    starts: npt.NDArray[np.int64] = field(repr=False)
    lengths: npt.NDArray[np.int64] = field(repr=False)
    digest: str | None = None  # sha256 of .idx and .bin, where the writer's manifest has it
    targets: npt.NDArray[np.bool_] | None = field(default=None, repr=False)

    @classmethod
    def open(cls, prefix: Path | str, digest: str | None = None) -> TokenShard:
        """`prefix`: the path without .bin or .idx. Every number of the index is checked against the size of both files
        before it is used; DamagedFile names what does not fit."""
        prefix = Path(prefix)
        dtype, lengths, pointers, documents = _read_index(_path(prefix, ".idx"))
        path = _path(prefix, ".bin")
        if not path.is_file():
            raise _damaged("the .bin file is missing", path)
        size = path.stat().st_size
        if size % dtype.itemsize:
            raise _damaged(f"{size} bytes are no whole number of {dtype}", path)
        ends = pointers + lengths.astype(np.int64) * dtype.itemsize
        outside = len(pointers) and (pointers.min() < 0 or pointers.max() > size or ends.max() > size)
        if outside or (pointers % dtype.itemsize).any():
            raise _damaged("the index points outside the tokens", path)
        if not np.array_equal(pointers[1:], ends[:-1]):
            raise _damaged("the sequences do not lie one after another", path)
        if size != (ends[-1] if len(ends) else 0):
            raise _damaged(f"the index ends at byte {ends[-1] if len(ends) else 0} of {size}", path)
        # A file of no bytes cannot be mapped.
        tokens = np.asarray(np.memmap(path, dtype=dtype, mode="r")) if size else np.empty(0, dtype)
        bounds = np.concatenate([pointers, [size]])[documents] // dtype.itemsize
        return cls(prefix, tokens, bounds[:-1], np.diff(bounds), digest)

    def __len__(self) -> int:
        return len(self.lengths)

    def document(self, index: int) -> Tokens:
        """The token ids of one document, without a copy."""
        start = self.starts[index]
        return self.tokens[start : start + self.lengths[index]]

    @cached_property
    def fingerprint(self) -> str:
        if self.digest is not None:
            return self.digest
        return shard_digest(sha256_file(_path(self.prefix, ".idx")), sha256_file(_path(self.prefix, ".bin")))


def shard_digest(idx_sha256: str, bin_sha256: str) -> str:
    return hashlib.sha256(f"{idx_sha256} {bin_sha256}".encode()).hexdigest()


def _read_index(path: Path) -> tuple[np.dtype[Any], Tokens, Tokens, Tokens]:
    """(dtype, lengths in tokens, pointers in bytes, documents as sequence numbers) of an .idx file."""
    if not path.is_file():
        raise DachengError("no such token shard", field="path", value=str(path), remedy="give the path without .idx")
    data = path.read_bytes()
    if len(data) < HEADER.size:
        raise _damaged("the header is cut off", path)
    magic, version, code, sequences, documents = HEADER.unpack_from(data)
    if magic != MAGIC or version != 1:
        raise _damaged("not a Megatron index of version 1", path)
    if code not in DTYPES or np.dtype(DTYPES[code]).kind == "f":
        raise _damaged(f"type code {code} is none of token ids", path)
    size = HEADER.size + 12 * sequences + 8 * documents
    if len(data) not in (size, size + sequences):
        raise _damaged(f"{sequences} sequences and {documents} documents need {size} bytes, not {len(data)}", path)
    lengths = np.frombuffer(data, "<i4", sequences, HEADER.size)
    pointers = np.frombuffer(data, "<i8", sequences, HEADER.size + 4 * sequences)
    bounds = np.frombuffer(data, "<i8", documents, HEADER.size + 12 * sequences)
    if documents == 0 or bounds[0] != 0 or bounds[-1] != sequences or (np.diff(bounds) < 0).any():
        raise _damaged("the document bounds do not run from the first sequence to the last", path)
    if (lengths < 0).any():
        raise _damaged("a sequence has a negative length", path)
    return np.dtype(DTYPES[code]).newbyteorder("<"), lengths, pointers, bounds


def _damaged(problem: str, path: Path) -> DamagedFile:
    return DamagedFile(
        f"the token shard is damaged: {problem}", field="path", value=str(path), remedy="tokenize the documents again"
    )


@dataclass(frozen=True, eq=False)
class TokenShards:
    """The shards of one split, in order."""

    shards: tuple[TokenShard, ...]

    @classmethod
    def open(cls, prefixes: Iterable[Path | str], digests: Sequence[str] | None = None) -> TokenShards:
        """`digests`: the shards' fingerprints as the writer recorded them; without, they are computed when asked for,
        which reads everything once."""
        prefixes = list(prefixes)
        known: Sequence[str | None] = digests if digests is not None else [None] * len(prefixes)
        return cls(tuple(TokenShard.open(prefix, digest) for prefix, digest in zip(prefixes, known, strict=True)))

    def __len__(self) -> int:
        return len(self.shards)

    def __iter__(self) -> Iterator[TokenShard]:
        return iter(self.shards)

    def __getitem__(self, index: int) -> TokenShard:
        return self.shards[index]

    @property
    def tokens(self) -> int:
        return sum(len(shard.tokens) for shard in self.shards)

    @property
    def documents(self) -> int:
        return sum(len(shard) for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 hex of every shard's files, in order."""
        return hashlib.sha256(" ".join(shard.fingerprint for shard in self.shards).encode()).hexdigest()
