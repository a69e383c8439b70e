"""Many files, and a large one."""

import pytest

from dacheng.rag.documents import MAX_BYTES
from dacheng.rag.retrieve import Retriever
from dacheng.rag.store import PassageStore


@pytest.mark.slow
def test_ten_thousand_files(tmp_path):
    folder = tmp_path / "documents"
    for i in range(100):
        (folder / f"{i:02}").mkdir(parents=True)
        for j in range(100):
            (folder / f"{i:02}" / f"{j:02}.txt").write_text(f"Fox number {i * 100 + j} ran.")
    with PassageStore.open(tmp_path / "x.db", create=True) as store:
        assert store.sync(folder).passages == 10_000
        (folder / "07" / "07.txt").unlink()
        report = store.sync(folder)
        assert (report.added, report.removed, report.unchanged) == (0, 1, 9_999)
        assert Retriever(store).search("4242", 1)[0].passage.source == "42/42.txt"


@pytest.mark.nightly
def test_fifty_megabytes_in_one_file(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    line = "Sentence number {} speaks of foxes, and of what they did to dogs.\n\n"
    with (folder / "big.txt").open("w") as out:
        for i in range(50_000_000 // len(line)):
            out.write(line.format(i))
    seen = []
    with PassageStore.open(tmp_path / "x.db", create=True) as store:
        report = store.sync(folder, lambda report: seen.append((report.bytes, report.passages)))
        assert report.files == 1 and len(seen) > 100 and sorted(seen) == seen
        hit = Retriever(store).search("4242", 1)[0]
        assert "number 4242 " in hit.passage.text and hit.passage.first_line <= 4242 * 2 + 1 <= hit.passage.last_line


def test_a_file_that_is_too_large_is_counted(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    with (folder / "huge.txt").open("wb") as out:
        out.truncate(MAX_BYTES + 1)  # holes: it takes no space
    with PassageStore.open(tmp_path / "x.db", create=True) as store:
        assert store.sync(folder).drops.dropped == {"oversized": 1}
