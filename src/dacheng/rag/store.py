"""The store: passages, their search terms and their vectors, in one SQLite file."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError
from dacheng.rag import schema
from dacheng.rag.passages import Passage
from dacheng.records import Drops
from dacheng.train.lock import OutputLock

if TYPE_CHECKING:
    from torch import Tensor

_COLUMNS = "p.id, f.source, p.heading, p.first_line, p.last_line, p.text, p.kind, p.language, p.key"
_SELECT = f"SELECT {_COLUMNS} FROM passages p JOIN files f ON f.id = p.file"
_BATCH = 500  # rows at a time
COUNT_WRITE = (
    "INSERT INTO meta VALUES('writes', '1') ON CONFLICT(name) DO UPDATE SET value = CAST(value AS INTEGER) + 1"
)


@dataclass(slots=True)
class SyncReport:
    """What a sync has done so far. files: those that gave passages; total_files, total_bytes: those that there are to
    read; passages: in the store; added, removed, unchanged: passages; bytes: read or found unchanged."""

    files: int = 0
    passages: int = 0
    added: int = 0
    removed: int = 0
    unchanged: int = 0
    drops: Drops = field(default_factory=Drops)
    bytes: int = 0
    seconds: float = 0.0
    done_files: int = 0
    total_files: int = 0
    total_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {"drops": self.drops.to_dict()}


class PassageStore:
    """Passages of a folder of documents. Reading is safe from several threads, and while another process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._guard = threading.Lock()

    @classmethod
    def open(cls, path: Path | str, *, create: bool = False) -> PassageStore:
        """A store that is there, or with `create` an empty one where there is none.

        Raises DachengError where there is none, DamagedFile where the file is damaged or something else, Locked where
        another process is creating it.
        """
        store = cls(Path(path))
        if create and not store.path.exists():
            store.path.parent.mkdir(parents=True, exist_ok=True)
            with store._lock():
                if not store.path.exists():
                    schema.create(store.path)
        store._database()
        return store

    def sync(self, root: Path | str, progress: Callable[[SyncReport], None] | None = None) -> SyncReport:
        """Makes the store what the folder `root` (or "stdlib") is now; only files that changed are read.

        A transaction holds whole files only: stopped at any moment, the store is usable, and the next sync goes on.
        progress: called after each file, and now and then within a large one, with the report so far.
        Raises UsageError where `root` is no folder or another one than the store was made of, Locked where another
        process writes the store.
        """
        from dacheng.rag.sync import Sync

        with self._writing() as database:
            return Sync(self.path, database).run(root, progress)

    # --- passages -----------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return int(self.query("SELECT count(*) FROM passages")[0][0])

    def get(self, number: int) -> Passage:
        """The passage with this id. Raises DachengError where there is none (any more)."""
        rows = self.query(f"{_SELECT} WHERE p.id = ?", (number,))
        if not rows:
            raise DachengError(
                "the store has no such passage", field="id", value=number, remedy="search again: it was re-indexed"
            )
        return Passage(*rows[0])

    def find(self, key: str) -> Passage | None:
        """The passage with this key, if it is (still) there."""
        rows = self.query(f"{_SELECT} WHERE p.key = ?", (key,))
        return Passage(*rows[0]) if rows else None

    def many(self, numbers: Sequence[int]) -> dict[int, Passage]:
        """The passages with these ids that are there."""
        found: dict[int, Passage] = {}
        for start in range(0, len(numbers), _BATCH):
            part = list(numbers[start : start + _BATCH])
            marks = ",".join("?" * len(part))
            found.update((row[0], Passage(*row)) for row in self.query(f"{_SELECT} WHERE p.id IN ({marks})", part))
        return found

    def all(self) -> Iterator[Passage]:
        """Every passage, by source and by place in it."""
        for (file,) in self.query("SELECT id FROM files ORDER BY source"):
            for row in self.query(f"{_SELECT} WHERE p.file = ? ORDER BY p.position", (file,)):
                yield Passage(*row)

    def neighbours(self, number: int) -> list[Passage]:
        """The passages right before and after one in its document: two at most."""
        return [
            Passage(*row)
            for row in self.query(
                f"{_SELECT} JOIN passages me ON me.file = p.file WHERE me.id = ? AND abs(p.position - me.position) = 1 "
                "ORDER BY p.position",
                (number,),
            )
        ]

    @property
    def root(self) -> str | None:
        """The folder it was made of (or "stdlib"); None before the first sync."""
        rows = self.query("SELECT value FROM meta WHERE name = 'root'")
        return str(rows[0][0]) if rows else None

    @property
    def fingerprint(self) -> str:
        """sha256 hex of all passages and their places; the same however often and in which order they came in."""
        digest = hashlib.sha256()
        for row in self._rows(
            "SELECT p.key, p.first_line, p.last_line, p.kind, p.language FROM passages p JOIN files f ON f.id = p.file "
            "ORDER BY f.source, p.position"
        ):
            digest.update(repr(tuple(row)).encode())
        return digest.hexdigest()

    def check(self) -> None:
        """Reads the whole file. Raises DamagedFile where something in it is not as it was written."""
        problems = [row[0] for row in self.query("PRAGMA quick_check(3)")]
        if problems != ["ok"]:
            raise schema.damaged(self.path, "; ".join(map(str, problems)))

    # --- vectors ------------------------------------------------------------------------------------------------------
    def vectors(self, encoder_name: str) -> tuple[Tensor, Tensor]:
        """(ids (N,) int64 of the passages with a vector of this encoder, ascending; the vectors (N, D) float16)."""
        import torch

        ids: list[int] = []
        data = bytearray()
        sql = "SELECT passage, vector FROM vectors WHERE encoder = ? ORDER BY passage"
        for number, vector in self._rows(sql, (encoder_name,)):
            ids.append(number)
            data += vector
        if not ids:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.float16)
        return torch.tensor(ids), torch.frombuffer(data, dtype=torch.float16).view(len(ids), -1)

    def put_vectors(self, encoder_name: str, ids: Sequence[int], vectors: Tensor) -> None:
        """Stores vectors (N, D) of passages as float16, one transaction. Those of passages that are gone are left out.

        Raises Locked where another process writes the store.
        """
        rows = vectors.detach().half().cpu().numpy()
        with self._writing() as database, transaction(database):
            database.executemany(
                "INSERT OR REPLACE INTO vectors SELECT ?, id, ? FROM passages WHERE id = ?",
                ((encoder_name, row.tobytes(), int(number)) for number, row in zip(ids, rows, strict=True)),
            )

    def encoders(self) -> list[str]:
        """Names of the encoders whose vectors are here."""
        return [row[0] for row in self.query("SELECT DISTINCT encoder FROM vectors ORDER BY encoder")]

    def without_vectors(self, encoder_name: str) -> list[int]:
        """Ids of the passages that have no vector of this encoder yet, ascending."""
        sql = "SELECT id FROM passages WHERE id NOT IN (SELECT passage FROM vectors WHERE encoder = ?) ORDER BY id"
        return [row[0] for row in self.query(sql, (encoder_name,))]

    @property
    def version(self) -> int:
        """Grows with every write, by whom ever; for what is kept of the store in memory."""
        rows = self.query("SELECT value FROM meta WHERE name = 'writes'")
        return int(rows[0][0]) if rows else 0

    # --- connections --------------------------------------------------------------------------------------------------
    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one read-only query. Raises DamagedFile."""
        with schema.translated(self.path):
            return self._database().execute(sql, values).fetchall()

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        with schema.translated(self.path):
            cursor = self._database().execute(sql, values)
        while True:
            with schema.translated(self.path):
                rows = cursor.fetchmany(_BATCH)
            if not rows:
                return
            yield from rows

    def _database(self) -> sqlite3.Connection:
        """This thread's own read-only connection."""
        database = getattr(self._local, "database", None)
        if database is None:
            database = self._local.database = schema.connect(self.path)
            with self._guard:
                self._connections.append(database)
        return database

    def _lock(self) -> OutputLock:
        return OutputLock(self.path, lock_path(self.path))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock():
            database = schema.connect(self.path, write=True)
            try:
                with schema.translated(self.path):
                    yield database
            finally:
                database.close()

    def close(self) -> None:
        """Closes the connections of all threads. Another use opens new ones."""
        with self._guard:
            for database in self._connections:
                database.close()
            self._connections.clear()
            self._local = threading.local()

    def __enter__(self) -> PassageStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lock_path(path: Path) -> Path:
    """The lock of a store's writers: a hidden file beside it."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute(COUNT_WRITE)
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
