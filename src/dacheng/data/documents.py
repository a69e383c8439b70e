"""Documents on disk, by split: JSON lines in files of a bounded size, compressed where zstandard is installed."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from dacheng.data.files import read_manifest
from dacheng.data.streams import open_bytes
from dacheng.errors import DachengError, DamagedFile
from dacheng.records import Record

KIND, VERSION = "documents", 1


class DocumentWriter:
    """Writes the records of one split into `folder`; `close` returns the list of files for the manifest.

    A file ends after `file_bytes` of JSON. Its sha256 is that of the JSON lines, so it does not change with the
    compression or its version.
    """

    def __init__(self, folder: Path, split: str, *, file_bytes: int = 256 << 20, compress: bool | None = None) -> None:
        self._folder, self._split, self._limit = folder, split, file_bytes
        self._compress = _has_zstandard() if compress is None else compress
        self._files: list[dict[str, Any]] = []
        self._stack = contextlib.ExitStack()
        self._out: IO[bytes] | None = None
        self._digest = hashlib.sha256()

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, record: Record) -> None:
        line = _line(record)
        if self._out is None or self._files[-1]["json_bytes"] + len(line) > self._limit:
            self._next_file()
        assert self._out is not None
        self._out.write(line)
        self._digest.update(line)
        entry = self._files[-1]
        entry["documents"] += 1
        entry["bytes"] += len((record.text or "").encode("utf-8", "surrogatepass"))
        entry["json_bytes"] += len(line)

    def close(self) -> list[dict[str, Any]]:
        self._end_file()
        return self._files

    def _next_file(self) -> None:
        self._end_file()
        name = f"{self._split}-{len(self._files):05d}.jsonl" + (".zst" if self._compress else "")
        self._out = self._stack.enter_context((self._folder / name).open("wb"))
        if self._compress:
            import zstandard

            writer = zstandard.ZstdCompressor(level=1, write_checksum=True).stream_writer(self._out)
            self._out = self._stack.enter_context(writer)
        self._digest = hashlib.sha256()
        self._files.append({"file": name, "documents": 0, "bytes": 0, "json_bytes": 0})

    def _end_file(self) -> None:
        if self._out is not None:
            self._stack.close()
            self._out = None
            self._files[-1]["sha256"] = self._digest.hexdigest()


def _has_zstandard() -> bool:
    try:
        import zstandard  # noqa: F401
    except ImportError:
        return False
    return True


def _line(record: Record) -> bytes:
    values: dict[str, Any] = {"id": record.id}
    for name in ("text", "messages", "label", "meta", "image", "audio"):
        value = getattr(record, name)
        if value is not None and value != {}:
            values[name] = value
    try:
        return (json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair in the meta or a label: escaped, it can be written
        return (json.dumps(values) + "\n").encode("ascii")
    except TypeError as error:
        raise DachengError(
            f"the record cannot be written as JSON: {error}",
            field="record",
            value=record.id,
            remedy="keep plain values in label and meta, and paths rather than bytes in image and audio",
        ) from error


@dataclass(frozen=True)
class DocumentStore:
    """Documents that `prepare` has written. `manifest`: counts, drops, configuration, fingerprint, files by split."""

    path: Path
    manifest: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: Path | str) -> DocumentStore:
        """Raises DachengError if there is no such store, DamagedFile if a file of it is missing."""
        store = cls(Path(path), read_manifest(Path(path), KIND, VERSION))
        for split in store.splits:
            for entry in store._entries(split):
                if not (store.path / entry["file"]).is_file():
                    raise DamagedFile(
                        "a file of the document store is missing",
                        field="path",
                        value=str(store.path / entry["file"]),
                        remedy="prepare the documents again",
                    )
        return store

    @property
    def splits(self) -> list[str]:
        return [split for split in self.manifest["splits"] if self.documents(split)]

    @property
    def fingerprint(self) -> str:
        """sha256 hex of the documents, split by split; the same wherever and with whatever compression they lie."""
        return str(self.manifest["fingerprint"])

    def _entries(self, split: str) -> list[dict[str, Any]]:
        if split not in self.manifest["splits"]:
            raise DachengError(
                "no such split",
                field="split",
                value=split,
                remedy=f"this store has {', '.join(self.manifest['splits'])}",
            )
        return list(self.manifest["splits"][split])

    def documents(self, split: str) -> int:
        return sum(entry["documents"] for entry in self._entries(split))

    def bytes(self, split: str) -> int:
        """UTF-8 bytes of the texts of a split."""
        return sum(entry["bytes"] for entry in self._entries(split))

    def records(self, split: str) -> Iterator[Record]:
        """The documents of a split in their order. Raises DamagedFile at the end of a file that has changed."""
        for entry in self._entries(split):
            path, digest = self.path / entry["file"], hashlib.sha256()
            with open_bytes(path) if path.suffix == ".zst" else path.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    digest.update(line)
                    yield _parse(line, f"{path}:{number}")
            if digest.hexdigest() != entry["sha256"]:
                raise DamagedFile(
                    "the documents are not those that were written",
                    field="sha256",
                    value=str(path),
                    remedy="prepare the documents again",
                )

    def texts(self, split: str) -> Iterator[str]:
        """The texts of a split, without records that have none."""
        return (record.text for record in self.records(split) if record.text is not None)


def _parse(line: bytes, where: str) -> Record:
    try:
        return Record(**json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedFile(
            f"not a record: {error}", field="path", value=where, remedy="prepare the documents again"
        ) from error


def store_fingerprint(splits: dict[str, list[dict[str, Any]]]) -> str:
    """Of the files' hashes, in order."""
    digest = hashlib.sha256()
    for split, entries in splits.items():
        digest.update(split.encode() + b"".join(bytes.fromhex(entry["sha256"]) for entry in entries))
    return digest.hexdigest()
