"""kill -9 while a store is being written: it can be read at once, and the next sync ends where a fresh one does."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest

from dacheng.rag.retrieve import Retriever
from dacheng.rag.store import PassageStore

pytestmark = pytest.mark.process

FILES = 80


def write_files(folder: Path, choose: random.Random, words: str) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(FILES):
        sections = [
            f"# Part {i} of {number}\n\n" + "A sentence about foxes and trees. " * 30
            for i in range(choose.randint(1, 9))
        ]
        (folder / f"{number:03}.md").write_text("\n\n".join([f"{words} {number}.", *sections]))


def sync(path: Path, folder: Path, pause: float, started) -> None:
    def slowly(report) -> None:
        if report.done_files >= 1:
            started.set()
        time.sleep(pause)

    with PassageStore.open(path, create=True) as store:
        store.sync(folder, slowly)


def killed(path: Path, folder: Path, after: float) -> bool:
    """Whether it was still at work."""
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=sync, args=(path, folder, 0.01, started))
    process.start()
    assert started.wait(60)
    time.sleep(after)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_nothing_is_lost_or_doubled(tmp_path):
    choose = random.Random(7)
    folder, path = tmp_path / "documents", tmp_path / "x.db"
    hits, sizes = 0, set()
    for generation in ("zebra", "giraffe"):
        write_files(folder, choose, generation)
        if generation == "giraffe":
            for number in range(0, FILES, 3):
                (folder / f"{number:03}.md").unlink()
        for _ in range(3):
            hits += killed(path, folder, choose.random())
            with PassageStore.open(path) as store:  # usable as it was left
                store.check()
                sizes.add(len(store))
                assert len(list(store.all())) == len(store)
                for file, first, last, count in store.query(
                    "SELECT file, min(position), max(position), count(*) FROM passages GROUP BY file"
                ):
                    assert (first, last) == (0, count - 1), file  # whole files only
        with PassageStore.open(path) as store, PassageStore.open(tmp_path / f"{generation}.db", create=True) as fresh:
            store.sync(folder)
            fresh.sync(folder)
            assert store.fingerprint == fresh.fingerprint and len(store) == len(fresh)
            count = "SELECT count(*) FROM terms WHERE terms MATCH 'zebra OR giraffe'"
            assert store.query(count) == fresh.query(count)
            one, other = (Retriever(each).search(f"{generation} 7 part 3", 20) for each in (store, fresh))
            assert [round(hit.score, 9) for hit in one] == [round(hit.score, 9) for hit in other]
    assert hits >= 3 and len(sizes) >= 2  # the kills came in time, and at different moments


def test_killed_while_it_is_created(tmp_path):
    """The leftover of an unfinished creation is in nobody's way."""
    path = tmp_path / "x.db"
    path.with_name(".x.db.partial").write_bytes(b"half")
    with PassageStore.open(path, create=True) as store:
        assert len(store) == 0
