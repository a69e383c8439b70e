"""Prepare and tokenize: a source -> cleaned, deduplicated, split documents on disk -> token shards and a packing index.

Both stream, so that memory holds a few batches whatever the size of the corpus (and a hash of every document while
deduplicating); both write beside and rename, so that an interrupted run leaves nothing half made.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dacheng import recipes
from dacheng.data import corpus, documents
from dacheng.data.cleaning import CleaningConfig, clean, drop
from dacheng.data.corpus import TokenizedCorpus
from dacheng.data.dedup import DedupConfig, deduplicate
from dacheng.data.documents import DocumentStore, DocumentWriter, store_fingerprint
from dacheng.data.files import fresh_directory, write_manifest
from dacheng.data.packing import Mode, pack
from dacheng.data.shards import ShardWriter, TokenShards, token_dtype
from dacheng.data.sources import open_source
from dacheng.data.split import TRAIN, VALID, SplitConfig, split_key
from dacheng.errors import DachengError, UsageError
from dacheng.records import Drops, Record

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """source: as `open_source` takes it. file_bytes: JSON bytes after which a new file of documents begins."""

    source: str | dict[str, Any] | list[str | dict[str, Any]] = "python-stdlib"
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    file_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if self.file_bytes < 1:
            raise UsageError("must be positive", field="file_bytes", value=self.file_bytes, remedy="say 268435456")


# --- documents --------------------------------------------------------------------------------------------------------
def prepare(
    config: PrepareConfig, out: Path, drops: Drops | None = None, progress: Progress | None = None
) -> DocumentStore:
    """Reads, cleans, deduplicates and splits a corpus into documents under `out`.

    Every record is counted once, as kept or as dropped for one reason; the manifest keeps the counts, and they are
    added to `drops`. Raises what `open_source` and `fresh_directory` raise, and DachengError where nothing is left, or
    where a validation split was asked for and there is only one document.
    """
    own = Drops()
    reader = open_source(config.source, own)
    try:
        with fresh_directory(out) as folder:
            records = deduplicate(clean(reader, config.cleaning, own), config.dedup, own)
            watched = _ticking(own.watch(records), lambda: reader.done_bytes, reader.total_bytes, progress)
            splits, held_out = _write_splits(watched, folder, config)
            if not splits[TRAIN]:
                raise DachengError(
                    "no document is left to train on", field="drops", value=dict(own.dropped),
                    remedy="loosen the cleaning, or split.valid_fraction",
                )  # fmt: skip
            manifest = {
                "fingerprint": store_fingerprint(splits),
                "config": recipes.to_dict(config) | {"cleaning": recipes.to_dict(config.cleaning.resolved())},
                "source_bytes": reader.total_bytes,
                "held_out": held_out,
                "drops": own.to_dict(),
                "splits": splits,
            }
            write_manifest(folder, documents.KIND, documents.VERSION, manifest)
    finally:
        reader.close()
        if drops is not None:
            drops.merge(own)
    if progress is not None:
        progress(reader.total_bytes, reader.total_bytes)
    return DocumentStore.open(out)


def _write_splits(
    records: Iterator[Record], folder: Path, config: PrepareConfig
) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """The files of each split, and by what rule documents were held out.

    A small corpus may have no document below the fraction. Then the one with the lowest key is held out: the one that a
    larger fraction would take first, so the choice still depends on content alone.
    """
    fraction, salt = config.split.valid_fraction, config.split.salt
    splits, lowest = _write(records, folder, config, below=int(fraction * 2**64))
    if fraction == 0 or splits[VALID] or not splits[TRAIN]:
        return splits, f"valid_fraction {fraction:g}"
    if sum(entry["documents"] for entry in splits[TRAIN]) == 1:
        raise DachengError(
            "there is one document, so none can be held out for validation",
            field="split.valid_fraction",
            value=fraction,
            remedy="set source.unit to paragraph or line, or split.valid_fraction to 0",
        )
    whole = folder / "whole"
    whole.mkdir()
    for entry in splits[TRAIN]:
        (folder / entry["file"]).rename(whole / entry["file"])
    again = DocumentStore(whole, {"splits": splits}).records(TRAIN)
    splits, _ = _write(again, folder, config, below=lowest + 1)
    shutil.rmtree(whole)
    return splits, f"lowest key (salt {salt!r}): no document fell within valid_fraction {fraction:g}"


def _write(
    records: Iterator[Record], folder: Path, config: PrepareConfig, below: int
) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Writes records with a key under `below` to valid, the others to train. Also returns the lowest key of all."""
    lowest = 2**64
    with (
        DocumentWriter(folder, TRAIN, file_bytes=config.file_bytes) as train,
        DocumentWriter(folder, VALID, file_bytes=config.file_bytes) as valid,
    ):
        for record in records:
            key = split_key(record, config.split.salt)
            lowest = min(lowest, key)
            (valid if key < below else train).write(record)
        return {TRAIN: train.close(), VALID: valid.close()}, lowest


def _ticking(items: Iterable[Any], done: Callable[[], int], total: int, progress: Progress | None) -> Iterator[Any]:
    """Passes items through and reports progress, some two hundred times in all."""
    next_report = 0
    for item in items:
        if progress is not None and done() >= next_report:
            progress(done(), total)
            next_report = done() + max(total // 200, 1)
        yield item


# --- tokens -----------------------------------------------------------------------------------------------------------
class Encoder(Protocol):
    """The part of text.Tokenizer that is needed here."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode_batch(self, texts: list[str], /) -> Sequence[Sequence[int]]: ...


def tokenize(
    docs: Path | DocumentStore,
    tokenizer: Encoder,
    out: Path,
    context_length: int,
    *,
    packing: Mode = "best-fit",
    shard_tokens: int = 1 << 29,
    batch_bytes: int = 1 << 20,
    drops: Drops | None = None,
    progress: Progress | None = None,
) -> TokenizedCorpus:
    """Encodes the documents of every split, each begun and ended by EOS, into shards under `out`, and packs them.

    shard_tokens: a new shard begins after so many. batch_bytes: text encoded at once; a few such batches are in memory
    (each token of them takes some 100 bytes in the tokenizers library), and the longest document whole.
    Records without text are counted as dropped.
    """
    store = docs if isinstance(docs, DocumentStore) else DocumentStore.open(docs)
    own, done, total = Drops(), 0, sum(store.bytes(split) for split in store.splits)
    splits: dict[str, Any] = {}
    with fresh_directory(out) as folder:
        for split in store.splits:
            writer = _SplitWriter(folder, split, tokenizer, shard_tokens)
            for texts, encoded in _encoded(store.records(split), tokenizer, batch_bytes, own):
                for text, ids in zip(texts, encoded, strict=True):
                    size = len(text.encode("utf-8"))
                    writer.add(ids, size)
                    own.keep(size)
                    done += size
                if progress is not None:
                    progress(done, total)
            splits[split] = writer.finish()
            shards = TokenShards.open([folder / entry["name"] for entry in splits[split]["shards"]])
            index = pack(shards, context_length, mode=packing, pad_id=tokenizer.pad_id)
            index.save(folder / "packing" / split)
            splits[split]["packing"] = index.statistics
        manifest = {
            "context_length": context_length,
            "packing": packing,
            "tokenizer": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "pad_id": tokenizer.pad_id,
            "documents": store.fingerprint,
            "drops": own.to_dict(),
            "splits": splits,
        }
        write_manifest(folder, corpus.KIND, corpus.VERSION, manifest)
    if drops is not None:
        drops.merge(own)
    return TokenizedCorpus.open(out)


def _encoded(
    records: Iterator[Record], tokenizer: Encoder, batch_bytes: int, drops: Drops
) -> Iterator[tuple[list[str], Sequence[Sequence[int]]]]:
    """Batches of texts with their ids, in order. Two batches are being encoded while a third is read or written: the
    library works outside the interpreter's lock, and the long last document of one batch leaves cores to the next."""
    with ThreadPoolExecutor(2, "encode") as pool:
        waiting: deque[tuple[list[str], Future[Sequence[Sequence[int]]]]] = deque()
        for texts in _text_batches(records, batch_bytes, drops):
            waiting.append((texts, pool.submit(tokenizer.encode_batch, texts)))
            if len(waiting) > 2:
                ready, future = waiting.popleft()
                yield ready, future.result()
        while waiting:
            ready, future = waiting.popleft()
            yield ready, future.result()


def _text_batches(records: Iterator[Record], batch_bytes: int, drops: Drops) -> Iterator[list[str]]:
    texts: list[str] = []
    size = 0
    for record in records:
        if record.text is None:
            drop(drops, "no_text", record)
            continue
        texts.append(record.text)
        size += len(record.text)
        if size >= batch_bytes:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


class _SplitWriter:
    """The shards of one split: a new one after `shard_tokens`."""

    def __init__(self, folder: Path, split: str, tokenizer: Encoder, shard_tokens: int) -> None:
        self._folder, self._split, self._limit = folder, split, shard_tokens
        self._dtype, self._eos, self._vocab_size = (
            token_dtype(tokenizer.vocab_size),
            tokenizer.eos_id,
            tokenizer.vocab_size,
        )
        self._unknown = getattr(tokenizer, "unk_id", None)
        self._writer: ShardWriter | None = None
        self._entries: list[dict[str, Any]] = []
        self._bytes = self._unknowns = 0

    def add(self, ids: Sequence[int], n_bytes: int) -> None:
        if self._writer is not None and self._writer.tokens + len(ids) + 2 > self._limit:
            self._entries.append(self._writer.finish())
            self._writer = None
        if self._writer is None:
            self._writer = ShardWriter(self._folder / f"{self._split}-{len(self._entries):05d}", self._dtype)
        # EOS begins a document too: its first token is learnt as any other, and generation can start from nothing.
        document = np.full(len(ids) + 2, self._eos, np.int64)
        document[1:-1] = ids
        if document.max() >= self._vocab_size:
            raise DachengError(
                "the tokenizer gives ids outside its vocabulary", field="vocab_size", value=self._vocab_size,
                remedy=f"the model needs an embedding for id {document.max()}: correct the tokenizer's vocab_size",
            )  # fmt: skip
        self._writer.add(document)
        self._bytes += n_bytes
        if self._unknown is not None:
            self._unknowns += int((document == self._unknown).sum())

    def finish(self) -> dict[str, Any]:
        """documents, tokens (with EOS), bytes of text, bytes_per_token, unknown_tokens (text lost to [UNK]), shards."""
        if self._writer is not None:
            self._entries.append(self._writer.finish())
        tokens = sum(entry["tokens"] for entry in self._entries)
        return {
            "documents": sum(entry["documents"] for entry in self._entries),
            "tokens": tokens,
            "bytes": self._bytes,
            "bytes_per_token": round(self._bytes / tokens, 4) if tokens else 0.0,
            "unknown_tokens": self._unknowns,
            "shards": self._entries,
        }
