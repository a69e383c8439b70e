"""Directories that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dacheng.data.files import fresh_directory, read_manifest, write_manifest
from dacheng.errors import DachengError, DamagedFile, Locked, UsageError


def write(out: Path, text: str) -> None:
    with fresh_directory(out) as folder:
        (folder / "data").write_text(text, encoding="utf-8")
        write_manifest(folder, "test", 1, {})


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_it_appears_whole_and_replaces_an_earlier_one(tmp_path):
    out = tmp_path / "deep" / "out"
    write(out, "one")
    write(out, "two")
    assert (out / "data").read_text() == "two" and leftovers(out.parent) == []


def test_a_failure_leaves_what_was_there(tmp_path):
    write(tmp_path / "out", "one")
    with pytest.raises(ZeroDivisionError), fresh_directory(tmp_path / "out") as folder:
        (folder / "data").write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert (tmp_path / "out" / "data").read_text() == "one" and leftovers(tmp_path) == []


def test_what_was_not_made_here_is_refused(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work", encoding="utf-8")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for name in ("thesis", "file"):
        with pytest.raises(UsageError, match="not made here"):
            write(tmp_path / name, "one")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "one")


def test_two_writers_are_kept_apart(tmp_path):
    with fresh_directory(tmp_path / "out") as folder:
        with pytest.raises(Locked, match="another process"):
            write(tmp_path / "out", "two")
        (folder / "data").write_text("one", encoding="utf-8")
        write_manifest(folder, "test", 1, {})
    assert (tmp_path / "out" / "data").read_text() == "one"


def test_a_full_disk_is_said_in_words(tmp_path):
    with pytest.raises(DachengError, match="the disk is full"), fresh_directory(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert leftovers(tmp_path) == [] and not (tmp_path / "out").exists()


def test_a_writer_killed_between_the_two_renames_is_made_good(tmp_path):
    write(tmp_path / "out", "one")
    (tmp_path / "out").rename(tmp_path / ".out.previous")
    with pytest.raises(ZeroDivisionError), fresh_directory(tmp_path / "out"):
        raise ZeroDivisionError
    assert (tmp_path / "out" / "data").read_text() == "one"


@pytest.mark.process
def test_kill_9_leaves_the_earlier_output_and_no_lock(tmp_path):
    write(tmp_path / "out", "one")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom dacheng.data.files import fresh_directory\n"
        "with fresh_directory(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'data').write_text('half')\n    print('writing', flush=True)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "writing\n"
    with pytest.raises(Locked):
        write(tmp_path / "out", "two")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert (tmp_path / "out" / "data").read_text() == "one" and leftovers(tmp_path) != []
    started = time.monotonic()
    write(tmp_path / "out", "two")
    assert (tmp_path / "out" / "data").read_text() == "two" and leftovers(tmp_path) == []
    assert time.monotonic() - started < 30


def test_manifests(tmp_path):
    write(tmp_path / "out", "one")
    assert read_manifest(tmp_path / "out", "test", 1)["version"] == 1
    for kind, version in (("other", 1), ("test", 2)):
        with pytest.raises(DachengError, match="expected"):
            read_manifest(tmp_path / "out", kind, version)
    with pytest.raises(DachengError, match="not a test directory"):
        read_manifest(tmp_path, "test", 1)
    for broken in ("{", "[]", '{"kind": 1}', "\xff"):
        (tmp_path / "out" / "manifest.json").write_bytes(broken.encode("latin-1"))
        with pytest.raises(DamagedFile, match="manifest"):
            read_manifest(tmp_path / "out", "test", 1)
