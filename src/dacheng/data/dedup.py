"""Exact deduplication: whole documents, or the paragraphs or lines in them, by a hash of their text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dacheng.data.cleaning import drop
from dacheng.data.streams import note
from dacheng.errors import DachengError, UsageError
from dacheng.records import Drops, Record

BYTES_PER_KEY = 100
"""A 16-byte digest as a Python object in a set takes about this much memory (measured)."""


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """level: "document"; or also "paragraph" (parted by an empty line) or "line" within documents; or "none".

    ignore: "whitespace" takes texts for equal that differ in white space only, "case" also those that differ in case,
        "nothing" compares exactly.
    min_chars: shorter lines and paragraphs may repeat (braces, headings, list markers are no boilerplate).
    max_keys: distinct texts to remember, about 100 bytes each; more is an error, not a guess.
    """

    level: Literal["none", "document", "paragraph", "line"] = "document"
    ignore: Literal["nothing", "whitespace", "case"] = "whitespace"
    min_chars: int = 80
    max_keys: int = 50_000_000

    def __post_init__(self) -> None:
        for name in ("min_chars", "max_keys"):
            if getattr(self, name) < 1:
                raise UsageError("must be positive", field=name, value=getattr(self, name), remedy="1 or more")


def content_of(record: Record) -> str:
    """What a record says, as one string: its text, or the canonical JSON of its messages."""
    if record.text is not None:
        return record.text
    return json.dumps(record.messages, sort_keys=True, ensure_ascii=False)


def deduplicate(records: Iterator[Record], config: DedupConfig, drops: Drops) -> Iterator[Record]:
    """The first of equal records is kept, whatever comes later is counted. Memory grows with the distinct texts only.

    128-bit hashes: among 50 million texts two different ones collide with probability 4e-24.
    """
    if config.level == "none":
        yield from records
        return
    documents, pieces = _Seen(config), _Seen(config)
    for record in records:
        if documents.before(content_of(record)):
            drop(drops, "duplicate", record)
            continue
        if config.level == "document" or record.text is None:
            yield record
            continue
        separator = "\n" if config.level == "line" else "\n\n"
        parts = record.text.split(separator)
        kept = [part for part in parts if len(part.strip()) < config.min_chars or not pieces.before(part)]
        if len(kept) < len(parts):
            note(drops, f"duplicate_{config.level}s_removed", record.id, len(parts) - len(kept))
            record = dataclasses.replace(record, text=separator.join(kept))
            if not any(part.strip() for part in kept):
                drop(drops, f"duplicate_{config.level}s_only", record)
                continue
        yield record


class _Seen:
    """The hashes of what was met so far."""

    def __init__(self, config: DedupConfig) -> None:
        self._ignore, self._limit = config.ignore, config.max_keys
        self._keys: set[bytes] = set()

    def before(self, text: str) -> bool:
        """True if an equal text was met before; remembers this one."""
        if self._ignore != "nothing":
            text = " ".join(text.split())
        if self._ignore == "case":
            text = text.casefold()
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if key in self._keys:
            return True
        if len(self._keys) >= self._limit:
            raise DachengError(
                f"more than {self._limit:,} distinct texts: their hashes would take over"
                f" {self._limit * BYTES_PER_KEY / 2**30:.1f} GiB of memory",
                field="dedup.max_keys",
                value=self._limit,
                remedy="raise it if there is memory, deduplicate by document, or prepare the corpus in parts",
            )
        self._keys.add(key)
        return False
