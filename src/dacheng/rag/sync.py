"""Bringing a store up to date with its folder: one transaction a file, unchanged files untouched, deletes followed."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dacheng.data.folders import File
from dacheng.errors import UsageError
from dacheng.rag.documents import MAX_BYTES, STDLIB, documents, read_document, root_name
from dacheng.rag.passages import Passage
from dacheng.rag.store import COUNT_WRITE, SyncReport, lock_path, transaction
from dacheng.records import Drops
from dacheng.text import analyzer

_RACY_NS = 2_000_000_000  # a file that changed this shortly before it was read may change again within one clock tick
_RETRY = "needs_"  # reasons that begin so go away by installing something: such files are read again each time
_COMMIT_S = 0.25  # files that are read within this time share a transaction: commits cost more than small files
_TICK = 256  # passages of one large file, between two calls of progress
_READING = 0.6  # of the time that a file takes; the rest is writing


class Sync:
    """One sync. `database`: a writing connection, under the store's lock."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self._path, self._database = path, database
        self._report = SyncReport()
        self._progress: Callable[[SyncReport], None] | None = None
        self._began = self._begun = time.perf_counter()  # the sync, and the transaction that is open

    def run(self, root: Path | str, progress: Callable[[SyncReport], None] | None = None) -> SyncReport:
        try:
            return self._run(root, progress)
        finally:
            self._commit()  # whole files only: a file that failed has rolled its own transaction back

    def _run(self, root: Path | str, progress: Callable[[SyncReport], None] | None) -> SyncReport:
        report, self._progress = self._report, progress
        self._check_root(root)
        self._check_analyzer()
        files = documents(root, report.drops, skip=self._own_files())
        report.total_files, report.total_bytes = len(files), sum(size for _, _, size in files)
        report.passages = int(self._database.execute("SELECT count(*) FROM passages").fetchone()[0])
        known = {row[0]: row for row in self._database.execute("SELECT source, id, drops FROM files")}
        names: set[str] = set()
        for file in files:
            if file[1] in names:  # two names that are not UTF-8 may look the same
                report.drops.drop("name_taken", file[2], file[1])
            else:
                names.add(file[1])
                self._file(file, docstrings=root == STDLIB)
            report.done_files += 1
            if time.perf_counter() - self._begun > _COMMIT_S:
                self._commit()
            self._tell()
        for source in sorted(known.keys() - names):
            with self._change():
                self._remove_file(known[source][1])
        self._commit()
        self._tell()
        self._database.execute("PRAGMA optimize")
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # the one file can be copied as it is
        return report

    def _tell(self) -> None:
        self._report.seconds = time.perf_counter() - self._began
        if self._progress is not None:
            self._progress(self._report)

    @contextmanager
    def _change(self) -> Iterator[None]:
        """What changes for one file, in the open transaction or a new one. Failing, the transaction is undone."""
        if not self._database.in_transaction:
            self._database.execute("BEGIN IMMEDIATE")
            self._begun = time.perf_counter()
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise

    def _commit(self) -> None:
        if self._database.in_transaction:
            self._database.execute(COUNT_WRITE)
            self._database.execute("COMMIT")

    def _own_files(self) -> frozenset[Path]:
        path = self._path.absolute()
        return frozenset([path, lock_path(path), *(Path(f"{path}{end}") for end in ("-wal", "-shm", "-journal"))])

    def _check_root(self, root: Path | str) -> None:
        name = root_name(root)
        row = self._database.execute("SELECT value FROM meta WHERE name = 'root'").fetchone()
        if row is not None and row[0] != name:
            raise UsageError(
                f"the store {self._path} was made of {row[0]}",
                field="source",
                value=name,
                remedy="name another file for this folder, or remove the old one if the folder has moved",
            )
        if row is None:
            if root != STDLIB and not Path(root).is_dir():
                documents(root, Drops())  # raises: a mistyped folder is not the one that the store is made of
            with self._change():
                self._database.execute("INSERT INTO meta VALUES('root', ?)", (name,))

    def _check_analyzer(self) -> None:
        """Terms of another analyzer find nothing: they are made anew from the passages."""
        row = self._database.execute("SELECT value FROM meta WHERE name = 'analyzer'").fetchone()
        if row[0] == analyzer.VERSION:
            return
        with transaction(self._database):
            self._database.execute("INSERT INTO terms(terms) VALUES('delete-all')")
            for number, heading, text in self._database.execute("SELECT id, heading, text FROM passages").fetchall():
                self._database.execute(
                    "INSERT INTO terms(rowid, heading, body) VALUES(?, ?, ?)", (number, *_terms(heading, text))
                )
            self._database.execute("UPDATE meta SET value = ? WHERE name = 'analyzer'", (analyzer.VERSION,))

    # --- one file -----------------------------------------------------------------------------------------------------
    def _file(self, file: File, *, docstrings: bool) -> None:
        path, source, _ = file
        row = self._database.execute(
            "SELECT id, size, mtime_ns, read_ns, sha256, drops FROM files WHERE source = ?", (source,)
        ).fetchone()
        try:
            status = path.stat()
            same = row is not None and (row[1], row[2]) == (status.st_size, status.st_mtime_ns)
            if same and row[2] < row[3] - _RACY_NS and _RETRY not in row[5]:
                self._unchanged(row)
                return
            read_ns = time.time_ns()
            with path.open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
        except OSError:
            self._report.drops.drop("unreadable", 0, source)
            self._forget(row)
            return
        if len(data) > MAX_BYTES:  # it grew since the folder was listed
            self._report.drops.drop("oversized", len(data), source)
            self._forget(row)
            return
        digest = hashlib.sha256(data).hexdigest()
        about = (len(data), status.st_mtime_ns, read_ns, digest)
        if row is not None and row[4] == digest and _RETRY not in row[5]:
            with self._change():
                self._database.execute(
                    "UPDATE files SET size = ?, mtime_ns = ?, read_ns = ?, sha256 = ? WHERE id = ?", (*about, row[0])
                )
            self._unchanged(row)
            return
        drops, before = Drops(), self._report.bytes

        def tick(characters: int) -> None:
            self._report.bytes = before + int(_READING * min(characters, len(data)))
            self._tell()

        passages = read_document(data, source, drops, docstrings=docstrings, tick=tick)
        with self._change():
            self._replace(row[0] if row else None, source, about, passages, drops)
        self._report.bytes = before + len(data)
        self._report.drops.merge(drops)
        self._report.files += bool(passages)

    def _unchanged(self, row: tuple) -> None:
        number, size = row[0], row[1]
        count = self._database.execute("SELECT count(*) FROM passages WHERE file = ?", (number,)).fetchone()[0]
        self._report.unchanged += count
        self._report.files += count > 0
        self._report.bytes += size
        self._report.drops.merge(_drops(row[5]))

    def _forget(self, row: tuple | None) -> None:
        if row is not None:
            with self._change():
                self._remove_file(row[0])

    def _replace(self, number: int | None, source: str, about: tuple, passages: list[Passage], drops: Drops) -> None:
        """The file's passages are these now. Those that were there before keep their ids, and so their vectors."""
        told = json.dumps(drops.to_dict(), ensure_ascii=False)
        if number is None:
            number = self._database.execute(
                "INSERT INTO files(source, size, mtime_ns, read_ns, sha256, drops) VALUES(?, ?, ?, ?, ?, ?)",
                (source, *about, told),
            ).lastrowid
        else:
            self._database.execute(
                "UPDATE files SET size = ?, mtime_ns = ?, read_ns = ?, sha256 = ?, drops = ? WHERE id = ?",
                (*about, told, number),
            )
        before = dict(self._database.execute("SELECT key, id FROM passages WHERE file = ?", (number,)).fetchall())
        now = {passage.key for passage in passages}
        self._remove(before[key] for key in before.keys() - now)
        begin = self._report.bytes
        for position, passage in enumerate(passages):
            if position % _TICK == _TICK - 1:
                self._report.bytes = begin + int((1 - _READING) * about[0] * position / len(passages))
                self._tell()
            place = (position, passage.first_line, passage.last_line, passage.kind, passage.language)
            if passage.key in before:
                self._database.execute(
                    "UPDATE passages SET position = ?, first_line = ?, last_line = ?, kind = ?, language = ? "
                    "WHERE id = ?",
                    (*place, before[passage.key]),
                )
                self._report.unchanged += 1
            else:
                self._add(number, passage, place)

    def _add(self, file: int | None, passage: Passage, place: tuple) -> None:
        number = self._database.execute(
            "INSERT INTO passages(file, position, first_line, last_line, kind, language, heading, text, key) "
            "VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (file, *place, passage.heading, passage.text, passage.key),
        ).lastrowid
        self._database.execute(
            "INSERT INTO terms(rowid, heading, body) VALUES(?, ?, ?)", (number, *_terms(passage.heading, passage.text))
        )
        self._report.added += 1
        self._report.passages += 1

    def _remove(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            heading, text = self._database.execute(
                "SELECT heading, text FROM passages WHERE id = ?", (number,)
            ).fetchone()
            self._database.execute(
                "INSERT INTO terms(terms, rowid, heading, body) VALUES('delete', ?, ?, ?)",
                (number, *_terms(heading, text)),
            )
            self._database.execute("DELETE FROM vectors WHERE passage = ?", (number,))
            self._database.execute("DELETE FROM passages WHERE id = ?", (number,))
            self._report.removed += 1
            self._report.passages -= 1

    def _remove_file(self, number: int) -> None:
        rows = self._database.execute("SELECT id FROM passages WHERE file = ?", (number,)).fetchall()
        self._remove(row[0] for row in rows)
        self._database.execute("DELETE FROM files WHERE id = ?", (number,))


def _terms(heading: str, text: str) -> tuple[str, str]:
    return " ".join(analyzer.analyze(heading)), " ".join(analyzer.analyze(text))


def _drops(told: str) -> Drops:
    values = json.loads(told)
    for name in ("dropped", "dropped_bytes", "altered"):
        values[name] = Counter(values[name])
    return Drops(**values)
