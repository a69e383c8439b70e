import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest
import torch
from rag_documents import write_folder

from dacheng.errors import DachengError, DamagedFile, Locked, UsageError
from dacheng.rag.retrieve import Retriever
from dacheng.rag.store import PassageStore
from dacheng.text import analyzer


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_folder(tmp_path / "documents")


@pytest.fixture
def store(tmp_path):
    with PassageStore.open(tmp_path / "x.db", create=True) as store:
        yield store


def write(path: Path, text: str) -> None:
    """As an edit that is not in the same clock tick as the last sync."""
    path.write_text(text)
    old = time.time_ns() - 10_000_000_000
    os.utime(path, ns=(old, old + len(text)))


def age(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, ns=(1_600_000_000_000_000_000, 1_600_000_000_000_000_000))


def headings(store: PassageStore, question: str) -> list[str]:
    return [f"{hit.passage.source}:{hit.passage.heading}" for hit in Retriever(store).search(question)]


def test_a_folder_of_everything(store, folder):
    reports = []
    report = store.sync(folder, lambda report: reports.append(report.done_files))
    assert report.files == 9 and report.passages == report.added == len(store) > 15
    assert dict(report.drops.dropped) == {
        "encrypted_pdf": 1,
        "broken_pdf": 1,
        "broken_docx": 1,
        "binary": 1,
        "empty_file": 1,
        "hidden": 1,
        "no_text": 1,
        "link": 1,
    }
    assert report.drops.altered == {"read_as_gb18030": 1} and report.drops.kept == 9
    assert report.drops.examples["link"] == "loop" and report.total_files == report.done_files == 14
    assert reports == [*range(1, 15), 14]
    passages = list(store.all())
    assert len({p.key for p in passages}) == len({p.id for p in passages}) == len(passages)
    assert [p.source for p in passages] == sorted(p.source for p in passages)
    assert all(store.get(p.id) == p == store.find(p.key) for p in passages)
    store.check()


def test_again_reads_nothing_and_says_the_same(store, folder):
    age(folder)
    first = store.sync(folder)
    before = [(p.id, p.key) for p in store.all()]
    again = store.sync(folder)
    assert (again.added, again.removed, again.unchanged) == (0, 0, first.passages)
    assert again.drops.to_dict() == first.drops.to_dict() and again.files == first.files
    assert [(p.id, p.key) for p in store.all()] == before


def test_edits_and_deletes_are_followed(store, folder, tmp_path):
    store.sync(folder)
    kept = {p.key: p.id for p in store.all() if p.source == "guide.md" and p.heading != "Guide"}
    write(folder / "guide.md", (folder / "guide.md").read_text().replace("Intro to the", "A zebra in the"))
    (folder / "library.rst").unlink()
    write(folder / "new.txt", "A giraffe is new.")
    report = store.sync(folder)
    assert report.added == 2 and report.removed > 2
    assert headings(store, "zebra") == ["guide.md:Guide"] and headings(store, "giraffe") == ["new.txt:"]
    assert headings(store, "copytree") == []
    assert {p.key: p.id for p in store.all() if p.key in kept} == kept  # what stayed has its number still
    with PassageStore.open(tmp_path / "fresh.db", create=True) as fresh:
        fresh.sync(folder)
        assert fresh.fingerprint == store.fingerprint
    store.check()


def test_an_edit_within_one_clock_tick_is_seen(store, folder):
    path = folder / "new.txt"
    path.write_text("A giraffe here.")
    store.sync(folder)
    status = path.stat()
    path.write_text("A gorilla here.")  # as long as before
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    store.sync(folder)
    assert headings(store, "gorilla") and not headings(store, "giraffe")


def test_a_touched_file_keeps_its_passages(store, folder):
    age(folder)
    store.sync(folder)
    os.utime(folder / "guide.md", ns=(1_700_000_000_000_000_000,) * 2)
    assert store.sync(folder).added == 0


def test_a_file_that_became_unreadable_goes(store, folder):
    store.sync(folder)
    write(folder / "guide.md", "binary \0 now")
    report = store.sync(folder)
    assert report.drops.dropped["binary"] == 2 and headings(store, "Setext") == []


def test_pdf_is_read_once_the_extra_is_there(store, folder, monkeypatch):
    age(folder)
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "pypdf", None)
        assert store.sync(folder).drops.dropped["needs_pypdf"] == 3
    report = store.sync(folder)
    assert "needs_pypdf" not in report.drops.dropped and headings(store, "foxes") == ["paper.pdf:"]


def test_neighbours(store, folder):
    store.sync(folder)
    one, two, three = [p for p in store.all() if p.source == "guide.md"][:3]
    assert store.neighbours(two.id) == [one, three] and store.neighbours(one.id) == [two]
    with pytest.raises(DachengError, match="no such passage"):
        store.get(10**9)


def test_names_that_are_not_utf8_and_strange_ones(store, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in (b"caf\xe9.txt", b"caf\xe8.txt", "文件 名.md".encode(), b"a\nb.txt", b"'; DROP TABLE passages;.txt"):
        Path(os.fsdecode(bytes(folder) + b"/" + name)).write_text(f"words of {name!r}")
    report = store.sync(folder)
    assert report.files == 4 and report.drops.dropped == {"name_taken": 1}
    assert store.sync(folder).passages == len(store) == 4


def test_nothing_to_read(store, tmp_path):
    (tmp_path / "empty").mkdir()
    report = store.sync(tmp_path / "empty")
    assert (report.files, report.passages, len(store)) == (0, 0, 0) and Retriever(store).search("x") == []


def test_one_sentence(store, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("The fox.")
    assert store.sync(tmp_path / "one").passages == 1 and headings(store, "fox") == ["a.txt:"]


def test_a_store_inside_its_folder_does_not_read_itself(folder):
    with PassageStore.open(folder / "x.db", create=True) as store:
        report = store.sync(folder)
        assert report.total_files == 14 and report.drops.dropped["hidden"] == 2  # one is its lock
        assert store.sync(folder).added == 0


def test_another_folder_is_refused(store, folder, tmp_path):
    store.sync(folder)
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="was made of"):
        store.sync(tmp_path / "other")
    with pytest.raises(UsageError, match="no such folder"):
        PassageStore.open(tmp_path / "y.db", create=True).sync(tmp_path / "nowhere")


def test_one_writer(store, folder):
    def again(report):
        if report.done_files == 1:
            with pytest.raises(Locked, match=str(os.getpid())):
                store.sync(folder)
            refused.append(True)

    refused: list[bool] = []
    store.sync(folder, again)
    assert refused == [True]


def test_reading_from_threads_while_it_is_written(store, folder):
    store.sync(folder)
    errors: list[BaseException] = []
    stop = threading.Event()

    def read():
        try:
            while not stop.is_set():
                for hit in Retriever(store).search("install the guide"):
                    assert hit.passage.text
                assert len(list(store.all())) > 0
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(5):
        write(folder / "guide.md", f"# Guide {i}\n\nInstall it {i} times.")
        store.sync(folder)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors


def test_stopped_in_the_middle_it_goes_on(store, folder, tmp_path):
    def stop(report):
        if report.done_files == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.sync(folder, stop)
    assert len(store) > 0
    store.check()
    store.sync(folder)
    with PassageStore.open(tmp_path / "fresh.db", create=True) as fresh:
        fresh.sync(folder)
        assert fresh.fingerprint == store.fingerprint


def test_another_analyzer_makes_the_terms_anew(store, folder, monkeypatch):
    age(folder)
    store.sync(folder)
    monkeypatch.setattr(analyzer, "VERSION", "other")
    monkeypatch.setattr(analyzer, "analyze", lambda text: ["zebra"])
    assert store.sync(folder).added == 0
    assert store.query("SELECT count(*) FROM terms WHERE terms MATCH 'zebra'") == [(len(store),)]
    (folder / "guide.md").unlink()
    store.sync(folder)
    assert store.query("SELECT count(*) FROM terms WHERE terms MATCH 'zebra'") == [(len(store),)]


def test_vectors_live_and_die_with_their_passages(store, folder):
    store.sync(folder)
    ids = store.without_vectors("toy")
    assert len(ids) == len(store)
    rows = torch.nn.functional.normalize(torch.randn(len(ids), 8, generator=torch.Generator().manual_seed(0)), dim=1)
    store.put_vectors("toy", [*ids, 10**6], torch.cat([rows, rows[:1]]))
    found, vectors = store.vectors("toy")
    assert found.tolist() == ids and torch.equal(vectors, rows.half())
    assert store.encoders() == ["toy"] and store.without_vectors("toy") == [] and store.vectors("no")[0].tolist() == []
    gone = {p.id for p in store.all() if p.source == "guide.md"}
    (folder / "guide.md").unlink()
    store.sync(folder)
    assert store.vectors("toy")[0].tolist() == [i for i in ids if i not in gone]


@pytest.mark.parametrize("damage", ["cut", "header", "middle", "empty", "text"])
def test_a_damaged_file_is_named(store, folder, damage):
    store.sync(folder)
    store.close()
    data = bytearray(store.path.read_bytes())
    match damage:
        case "cut":
            data = data[: len(data) // 2]
        case "header":
            data[:16] = b"x" * 16
        case "middle":
            data[4096:] = os.urandom(len(data) - 4096)
        case "empty":
            data = bytearray()
        case "text":
            data = bytearray(b"these are notes\n" * 500)
    store.path.write_bytes(data)
    with pytest.raises(DamagedFile) as caught, PassageStore.open(store.path) as again:
        list(again.all())
        again.check()
    assert str(store.path) in str(caught.value) and caught.value.remedy


def test_what_is_no_store(tmp_path):
    with pytest.raises(DachengError, match="no such store"):
        PassageStore.open(tmp_path / "x.db")
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE t(x)")
    database.close()
    with pytest.raises(DamagedFile, match="not a store"):
        PassageStore.open(tmp_path / "other.db", create=True)


def test_a_later_version_is_refused(store):
    store.close()
    with sqlite3.connect(store.path) as database:
        database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(DachengError, match="version 99"):
        PassageStore.open(store.path)


def test_the_interpreters_library(tmp_path, monkeypatch):
    """A part of it: read, not imported."""
    from dacheng.rag import sync

    whole = sync.documents
    monkeypatch.setattr(
        sync,
        "documents",
        lambda root, drops, skip=frozenset(): [f for f in whole(root, drops) if f[1] in ("shutil.py", "this.py")],
    )
    with PassageStore.open(tmp_path / "x.db", create=True) as store:
        report = store.sync("stdlib")
        assert report.drops.dropped == {"undocumented": 1} and store.root == "stdlib"
        best = Retriever(store).search("recursively delete a directory tree")[0].passage
        assert best.heading == "shutil.rmtree" and best.source == "shutil.py" and best.first_line > 100
        assert best.text.startswith("shutil.rmtree(path, ")
