"""Where records come from: a file, a folder, or the running interpreter's own library, named by one specification."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import hashlib
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

from dacheng import recipes
from dacheng.data.files import sha256_file
from dacheng.data.folders import files_of_kind, inner_suffix, python_stdlib, walk
from dacheng.data.readers import Place, read_json, read_jsonl, read_parquet, read_text, to_record
from dacheng.errors import DachengError, DamagedFile, UsageError
from dacheng.records import Drops, Record

STDLIB = "python-stdlib"
READERS = {"jsonl": read_jsonl, "json": read_json, "parquet": read_parquet}  # every other kind: read_text
Kind = Literal["auto", "text", "jsonl", "json", "parquet", "folder", "python-stdlib"]
SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".ndjson"), "json": (".json",), "parquet": (".parquet",)
}  # fmt: skip
RECORD_KINDS: tuple[Kind, ...] = ("jsonl", "parquet")  # a .json among documents is a document


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """What to read and how.

    path: a file (.txt and other text, .jsonl, .json, .parquet; also .gz and .zst of the first three) or a folder.
    kind: "auto" goes by the path: a folder of nothing but .jsonl or .parquet files is read as records, any other folder
        as documents, one a file.
    text_field, messages_field, id_field, label_field: where a JSON object or a parquet row keeps them. Other fields
        are counted as ignored unless named in keep_fields, which go to the record's meta.
    unit: what a record of a text file is: the whole file, a line, or a paragraph (lines up to an empty one).
    encoding: of text and JSON; must be a superset of ASCII. bad_bytes: what to do where the bytes are not in it.
    suffixes: of the files a folder's walk takes; empty takes every text file.
    max_document_bytes: the longest line or document held in memory; a longer one is dropped and counted.
    """

    path: str = ""
    kind: Kind = "auto"
    text_field: str = "text"
    messages_field: str | None = None
    id_field: str | None = None
    label_field: str | None = None
    keep_fields: tuple[str, ...] = ()
    unit: Literal["file", "line", "paragraph"] = "file"
    encoding: str = "utf-8"
    bad_bytes: Literal["replace", "drop", "error"] = "replace"
    suffixes: tuple[str, ...] = ()
    max_document_bytes: int = 32 << 20
    wanted: ClassVar[str] = ""  # what a subclass reads, in the words of an error's remedy

    def __post_init__(self) -> None:
        try:
            ascii_safe = codecs.lookup(self.encoding) is not None and "\n{".encode(self.encoding) == b"\n{"
        except LookupError:
            ascii_safe = False
        if not ascii_safe:
            raise UsageError(
                "not an encoding that files can be read in line by line",
                field="encoding",
                value=self.encoding,
                remedy="utf-8, gb18030, cp1252…; convert UTF-16 files to UTF-8 first",
            )
        if self.max_document_bytes < 1:
            raise UsageError(
                "must be positive", field="max_document_bytes", value=self.max_document_bytes, remedy="say 33554432"
            )

    def records(
        self, value: Any, where: str, size: int, meta: dict[str, Any], drops: Drops, ignored: Counter[str]
    ) -> Iterator[Record]:
        """The records that a JSON object or a parquet row says: one here; a subclass may read other layouts."""
        record = to_record(value, where, size, meta, self, drops, ignored)
        if record is not None:
            yield record

    def columns(self) -> set[str | None] | None:
        """The parquet columns that are read; None for all."""
        return {self.text_field, self.messages_field, self.id_field, self.label_field, *self.keep_fields}


AnySpec = SourceSpec | str | Path | Mapping[str, Any]


def parse_spec(spec: AnySpec) -> SourceSpec:
    """A specification with its kind resolved. UsageError for an unknown key or a wrong type, DachengError for a missing
    path."""
    spec = _spec(spec)
    if spec.kind == STDLIB:
        if spec.path:
            raise UsageError(
                f"{STDLIB} has no path: it is the running interpreter's own library",
                field="source.path",
                value=spec.path,
                remedy="leave out path, or kind",
            )
        return spec
    if not spec.path:
        raise UsageError("no path is given", field="source.path", remedy=f"name a file, a folder, or {STDLIB}")
    path = Path(spec.path).expanduser()
    if not path.exists():
        raise DachengError(
            "no such file or folder", field="source.path", value=spec.path,
            remedy="check the path" if spec.wanted else f"check the path, or use {STDLIB}",
        )  # fmt: skip
    return dataclasses.replace(spec, path=str(path), kind=_kind(path) if spec.kind == "auto" else spec.kind)


def _spec(spec: AnySpec) -> SourceSpec:
    if isinstance(spec, SourceSpec):
        return spec
    if isinstance(spec, Mapping):
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in spec.items()}
        converted: SourceSpec = recipes.convert(SourceSpec, plain, "source")
        return converted
    return SourceSpec(kind="python-stdlib") if str(spec) == STDLIB else SourceSpec(path=str(spec))


def _kind(path: Path) -> Kind:
    if path.is_dir():
        visible = (file for file in path.rglob("*") if not any(p.startswith(".") for p in file.relative_to(path).parts))
        suffixes = {inner_suffix(file) for file in visible if file.is_file()}
        return next((kind for kind in RECORD_KINDS if suffixes and suffixes <= set(SUFFIXES[kind])), "folder")
    return next((kind for kind, known in SUFFIXES.items() if inner_suffix(path) in known), "text")


class RecordReader(Iterator[Record]):
    """The records of some sources, one after another, in a fixed order.

    `total_bytes` of their files and `done_bytes` read so far are for progress (compressed bytes where compressed).
    """

    def __init__(self, specs: Sequence[SourceSpec], drops: Drops | None = None) -> None:
        self._warn = drops is None
        self.drops = Drops() if drops is None else drops
        self.parts = [(spec, _files(spec, self.drops)) for spec in specs]
        self.total_bytes = sum(size for _, files in self.parts for _, _, size in files)
        self._finished = 0
        self._current: BinaryIO | None = None
        self._records: Generator[Record, None, None] = self._read()

    @property
    def done_bytes(self) -> int:
        reading = self._current is not None and not self._current.closed
        return self._finished + (self._current.tell() if reading and self._current is not None else 0)

    def __next__(self) -> Record:
        return next(self._records)

    def close(self) -> None:
        self._records.close()

    def _read(self) -> Generator[Record, None, None]:
        for spec, files in self.parts:
            yielded = 0
            for path, name, size in files:
                for record in self._read_file(spec, path, name, size, alone=len(files) == 1):
                    yielded += 1
                    yield record
                self._finished, self._current = self._finished + size, None
            if not yielded:
                raise DachengError(
                    "the corpus is empty: there was not one record to read",
                    field="source",
                    value=spec.path or spec.kind,
                    remedy=_why_empty(self.drops, spec),
                )
        if self._warn and (self.drops.dropped or self.drops.altered):
            lost = dict(self.drops.dropped) | dict(self.drops.altered)
            warnings.warn(f"not everything was read as it stands: {lost} (pass drops= to see where)", stacklevel=2)

    def _read_file(self, spec: SourceSpec, path: Path, name: str, size: int, alone: bool) -> Iterator[Record]:
        try:
            raw = path.open("rb")
        except OSError as error:
            if alone:
                raise DachengError(
                    f"the file cannot be read: {error.strerror}", field="source.path", value=str(path)
                ) from error
            self.drops.drop("unreadable", size, name)
            return
        with raw:
            self._current = raw
            try:
                yield from READERS.get(spec.kind, read_text)(Place(path, name, raw), spec, self.drops)
            except DamagedFile:
                if spec.kind != "folder":  # one bad document is counted; one bad file of records is worth a stop
                    raise
                self.drops.drop("damaged", size, name)


def _why_empty(drops: Drops, spec: SourceSpec) -> str:
    if not drops.dropped:
        return f"give {spec.wanted}" if spec.wanted else "name a source that has something in it"
    reasons = ", ".join(f"{reason}: {count}" for reason, count in drops.dropped.most_common(5))
    return f"everything was dropped ({reasons}): " + (
        f"give {spec.wanted}" if spec.wanted else "change the source or its options"
    )


def _files(spec: SourceSpec, drops: Drops) -> list[tuple[Path, str, int]]:
    """(path, name, bytes) in the order they are read."""
    if spec.kind == STDLIB:
        return python_stdlib()
    path = Path(spec.path)
    if spec.kind == "folder":
        if not path.is_dir():
            raise UsageError("not a folder", field="source.path", value=spec.path, remedy="leave out kind: folder")
        records = SUFFIXES["jsonl"] + SUFFIXES["parquet"]
        return list(walk(path, drops, suffixes=spec.suffixes, records=records, max_bytes=spec.max_document_bytes))
    if path.is_dir():
        suffixes = spec.suffixes or SUFFIXES.get(spec.kind, (".txt", ".md"))
        return list(files_of_kind(path, drops, suffixes=suffixes))
    return [(path, path.name, path.stat().st_size)]


def open_source(spec: AnySpec | Sequence[AnySpec], drops: Drops | None = None) -> RecordReader:
    """The records of a source, or of several one after another.

    spec: "python-stdlib", a path, a SourceSpec, a mapping of its fields, or a list of these. What cannot be read is
    counted in `drops` with file:line; without `drops` a warning at the end says what was lost. What is wrong with the
    specification is raised here (UsageError, DachengError), an empty source when it has been read through.
    """
    return RecordReader([parse_spec(one) for one in _listed(spec)], drops)


def _listed(spec: AnySpec | Sequence[AnySpec]) -> Sequence[AnySpec]:
    if isinstance(spec, (str, Path, Mapping, SourceSpec)):
        return [spec]
    if not spec:
        raise UsageError("no source is given", field="source", remedy=f"name a file, a folder, or {STDLIB}")
    return spec


def fingerprint_source(spec: AnySpec | Sequence[AnySpec]) -> str:
    """sha256 hex of a source's options and of every byte it would read: equal if and only if the records are."""
    digest = hashlib.sha256()
    for one in map(parse_spec, _listed(spec)):
        digest.update(recipes.fingerprint(dataclasses.replace(one, path="")).encode())
        for path, name, _ in _files(one, Drops()):
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
            with contextlib.suppress(OSError):  # reading will count it as unreadable
                digest.update(sha256_file(path).encode())
    return digest.hexdigest()
