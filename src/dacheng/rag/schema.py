"""The file of a store: its tables, how it is opened, and how damage is told from what was never a store."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dacheng.errors import DachengError, DamagedFile
from dacheng.text import analyzer

APPLICATION, VERSION = 0x64636870, 1  # "dchp"
_HEADER = b"SQLite format 3\0"
_BUSY_S = 30.0

# The terms come from dacheng.text.analyzer: the tokenizer of FTS5 has only to split them at spaces. The index is
# contentless (the text is in `passages`), so a row leaves it with the terms it came with.
_TABLES = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files(
  id INTEGER PRIMARY KEY, source TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  read_ns INTEGER NOT NULL, sha256 TEXT NOT NULL, drops TEXT NOT NULL);
CREATE TABLE passages(
  id INTEGER PRIMARY KEY AUTOINCREMENT, file INTEGER NOT NULL REFERENCES files, position INTEGER NOT NULL,
  heading TEXT NOT NULL, first_line INTEGER NOT NULL, last_line INTEGER NOT NULL, text TEXT NOT NULL,
  kind TEXT NOT NULL, language TEXT NOT NULL, key TEXT NOT NULL UNIQUE);
CREATE INDEX passages_by_file ON passages(file, position);
CREATE TABLE vectors(
  encoder TEXT NOT NULL, passage INTEGER NOT NULL REFERENCES passages, vector BLOB NOT NULL,
  PRIMARY KEY(encoder, passage)) WITHOUT ROWID;
CREATE INDEX vectors_by_passage ON vectors(passage);
CREATE VIRTUAL TABLE terms USING fts5(heading, body, content='', tokenize="ascii tokenchars '_.'");
"""


def create(path: Path) -> None:
    """An empty store. It appears whole or not at all. The caller holds the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    for leftover in (partial, Path(f"{partial}-wal"), Path(f"{partial}-shm")):
        leftover.unlink(missing_ok=True)
    database = sqlite3.connect(partial)
    try:
        database.executescript(_TABLES)
        database.execute(f"PRAGMA application_id={APPLICATION}")
        database.execute(f"PRAGMA user_version={VERSION}")
        database.execute("INSERT INTO meta VALUES('analyzer', ?)", (analyzer.VERSION,))
        database.commit()
        database.execute("PRAGMA journal_mode=WAL")
    finally:
        database.close()
    os.replace(partial, path)


def connect(path: Path, *, write: bool = False) -> sqlite3.Connection:
    """A connection, for reading only unless `write`. Transactions are begun explicitly.

    Raises DachengError where the file is no store, DamagedFile where it is a damaged one.
    """
    _check_header(path)
    with translated(path):
        uri = path.absolute().as_uri()
        try:
            return _open(f"{uri}?mode={'rw' if write else 'ro'}", path)
        except sqlite3.OperationalError:
            # Reading a WAL file wants to write beside it, unless the file is taken for one that nobody changes.
            if write or os.access(path.parent, os.W_OK):
                raise
            return _open(f"{uri}?immutable=1", path)


def _open(uri: str, path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        found = (_pragma(database, "application_id"), _pragma(database, "user_version"))
        if found[0] != APPLICATION:
            raise _foreign(path)
        if found[1] != VERSION:
            raise DachengError(
                f"the store has version {found[1]}, this program reads version {VERSION}",
                field="path",
                value=str(path),
                remedy="index the documents again into a new file",
            )
        database.execute("PRAGMA foreign_keys=ON")
        database.execute("PRAGMA synchronous=NORMAL")  # a commit survives kill -9; a power cut may undo the last ones
        database.execute("PRAGMA cache_size=-32768")  # KiB
    except BaseException:
        database.close()
        raise
    return database


def _pragma(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])


def _check_header(path: Path) -> None:
    """Cheap signs of damage that SQLite would find only when it reads that far."""
    if not path.is_file():
        raise DachengError(
            "there is no such store",
            field="path",
            value=str(path),
            remedy=f"dacheng rag index FOLDER --out {path}",
        )
    with path.open("rb") as file:
        header = file.read(100)
    if header[:16] != _HEADER:
        raise _foreign(path)
    page_size, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
    wal = Path(f"{path}-wal")
    whole = not wal.is_file() or wal.stat().st_size == 0
    if len(header) < 100 or (whole and path.stat().st_size < (page_size if page_size != 1 else 65536) * pages):
        raise damaged(path, "it is cut off")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's complaints about a broken file as DamagedFile, naming it."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise DachengError(
                "the disk is full", field="path", value=str(path), remedy="free some space, then run again"
            ) from error
        if "locked" in str(error) or "interrupted" in str(error):
            raise
        raise DachengError(
            f"the store cannot be used: {error}", field="path", value=str(path), remedy="check the path and its rights"
        ) from error
    except sqlite3.DatabaseError as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, why: str) -> DamagedFile:
    return DamagedFile(
        f"the store of passages is damaged: {why}",
        field="path",
        value=str(path),
        remedy="remove the file and index the documents again: nothing else is lost",
    )


def _foreign(path: Path) -> DamagedFile:
    return DamagedFile(
        "this is not a store of passages", field="path", value=str(path), remedy="name a file made by dacheng rag index"
    )
