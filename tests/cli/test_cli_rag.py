import json
import os
import signal
import subprocess
import sys
import time

import pytest


@pytest.fixture
def docs(place):
    folder = place / "docs"
    folder.mkdir()
    (folder / "install.md").write_text("# Install\n\nRun make to install the program.\n")
    (folder / "狐狸.txt").write_text("狐狸跑得很快。")
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    return folder


def test_index_and_search(dacheng, docs):
    result = dacheng("rag", "index", "docs", "--out", "docs.db")
    assert result.returncode == 0, result.stderr
    assert "2 passages of 2 files (2 new, 0 gone)" in result.stdout
    assert "not read: 1 binary (picture.png)" in result.stderr
    result = dacheng("rag", "search", "docs.db", "how do I install it?", "--k", "1")
    assert result.stdout.startswith("[1] install.md, line 3: Install  (") and "Run make" in result.stdout
    (docs / "install.md").write_text("# Install\n\nRun cmake.\n")
    result = dacheng("rag", "index", "docs", "--out", "docs.db", "--json")
    told = json.loads(result.stdout)
    assert (told["added"], told["removed"], told["passages"], told["drops"]["dropped"]) == (1, 1, 2, {"binary": 1})
    result = dacheng("rag", "search", "docs.db", "狐狸怎么样", "--json")
    told = json.loads(result.stdout)
    assert told["mode"] == "bm25" and told["hits"][0]["passage"]["source"] == "狐狸.txt"
    assert told["hits"][0]["place"] == "line 1"
    result = dacheng("rag", "search", "docs.db", "zebra")
    assert result.returncode == 0 and "none of 2 passages" in result.stderr


def test_what_goes_wrong_is_named(dacheng, place):
    (place / "empty").mkdir()
    result = dacheng("rag", "index", "empty", "--out", "x.db")
    assert result.returncode == 1 and "nothing in this folder could be read" in result.stderr
    assert "Traceback" not in result.stderr
    result = dacheng("rag", "index", "nowhere", "--out", "y.db")
    assert result.returncode == 2 and "no such folder" in result.stderr
    result = dacheng("rag", "search", "nowhere.db", "x")
    assert result.returncode == 1 and "dacheng rag index" in result.stderr
    (place / "notes.db").write_text("not a store")
    result = dacheng("rag", "search", "notes.db", "x", "--json")
    assert result.returncode == 1 and json.loads(result.stdout)["error"]["field"] == "path"


@pytest.mark.process
def test_interrupted_it_says_how_to_go_on(dacheng, docs):
    for i in range(3000):
        (docs / f"{i:04}.md").write_text(f"# Page {i}\n\n" + f"Sentence {i} about foxes. " * 40)
    words = [sys.executable, "-m", "dacheng.cli", "rag", "index", "docs", "--out", "docs.db"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a job in the background has none
    )  # fmt: skip
    wal = docs.parent / "docs.db-wal"
    while process.poll() is None and not (wal.exists() and wal.stat().st_size > 200_000):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "can be searched as it is" in error and "dacheng rag index docs --out docs.db" in error
    assert dacheng("rag", "search", "docs.db", "foxes").stdout.startswith("[1] ")
    told = json.loads(dacheng("rag", "index", "docs", "--out", "docs.db", "--json").stdout)
    assert told["unchanged"] > 0 and told["added"] + told["unchanged"] == told["passages"] == 3002
