"""What the stages pass on: a Record, the count of what was dropped on the way, and the Artifact a stage leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Record:
    """One item of data. Exactly one of `text` and `messages` is usually set; `image` and `audio` are paths or bytes.

    `meta` carries provenance (source, path, line) and is never read by a model.
    """

    id: str
    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    image: str | bytes | None = None
    audio: str | bytes | None = None
    label: Any = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Drops:
    """Kept and dropped, by reason: `kept`/`dropped` count records, `*_bytes` their UTF-8 bytes.

    A filter reports here everything it removes or alters, so that nothing disappears silently.
    """

    kept: int = 0
    kept_bytes: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_bytes: Counter[str] = field(default_factory=Counter)
    altered: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def keep(self, n_bytes: int = 0) -> None:
        self.kept += 1
        self.kept_bytes += n_bytes

    def drop(self, reason: str, n_bytes: int = 0, example: str = "") -> None:
        """Counts one dropped record; the first `example` (an id or a path) of each reason is kept for the report."""
        self.dropped[reason] += 1
        self.dropped_bytes[reason] += n_bytes
        if example:
            self.examples.setdefault(reason, example)

    def alter(self, reason: str, count: int = 1) -> None:
        self.altered[reason] += count

    def merge(self, other: Drops) -> None:
        """Adds what another filter or process counted; the first example of each reason stays."""
        self.kept += other.kept
        self.kept_bytes += other.kept_bytes
        self.dropped.update(other.dropped)
        self.dropped_bytes.update(other.dropped_bytes)
        self.altered.update(other.altered)
        self.examples = other.examples | self.examples

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Drops:
        """The inverse of to_dict."""
        counters = {name: Counter(values[name]) for name in ("dropped", "dropped_bytes", "altered")}
        return cls(values["kept"], values["kept_bytes"], **counters, examples=dict(values["examples"]))

    def watch(self, records: Iterator[Record]) -> Iterator[Record]:
        """Passes `records` through and counts each as kept: the last filter of a chain."""
        for record in records:
            self.keep(len((record.text or "").encode("utf-8", "surrogatepass")))
            yield record

    def to_dict(self) -> dict[str, Any]:
        return {
            "kept": self.kept,
            "kept_bytes": self.kept_bytes,
            "dropped": dict(self.dropped),
            "dropped_bytes": dict(self.dropped_bytes),
            "altered": dict(self.altered),
            "examples": dict(self.examples),
        }


@dataclass(slots=True)
class Artifact:
    """What a stage left on disk: `kind` (tokenizer, shards, model, report…), its directory, and how it came to be.

    `fingerprint` is the content hash of the stage's recipe and inputs (the key of the life's cache); `parents` maps an
    input's name to its fingerprint; `metrics` are the figures the stage measured; `totals` its ledger totals.
    """

    kind: str
    path: Path
    fingerprint: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "path": str(self.path),
            "fingerprint": self.fingerprint,
            "metrics": self.metrics,
            "totals": self.totals,
            "parents": self.parents,
        }
