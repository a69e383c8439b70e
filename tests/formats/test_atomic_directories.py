"""Replacing files and directories: the old one or the new one, never half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from dacheng.errors import DachengError
from dacheng.formats import atomic
from dacheng.formats.atomic import replacing_directory, replacing_file


def test_a_failed_file_leaves_the_old_one_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing_file(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old"
    with replacing_file(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_is_replaced_whole(tmp_path, monkeypatch, exchange):
    if not exchange:  # a system that cannot swap two names
        monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    target = tmp_path / "deep" / "model"
    for content in ("one", "two"):
        with replacing_directory(target) as staging:
            (staging / content).write_text(content)
        assert [p.name for p in target.iterdir()] == [content]
    with pytest.raises(RuntimeError), replacing_directory(target) as staging:
        (staging / "three").write_text("three")
        raise RuntimeError
    assert [p.name for p in target.iterdir()] == ["two"]
    assert [p.name for p in target.parent.iterdir()] == ["model"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="renameat2 is Linux's")
def test_linux_exchanges_names_in_one_step(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    (a / "was a").touch()
    if not atomic._exchange(a, b):
        pytest.skip("this file system cannot exchange names")
    assert (b / "was a").exists()
    assert not list(a.iterdir())


def test_a_link_stays_and_what_it_points_at_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with replacing_directory(tmp_path / "link") as staging:
        (staging / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "new").exists()


def test_a_file_and_the_working_directory_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(DachengError, match="not a directory"), replacing_directory(tmp_path / "file"):
        pass
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(DachengError, match="working directory"), replacing_directory(tmp_path / "a"):
        pass


@pytest.mark.process
def test_a_killed_writer_leaves_the_old_directory_and_its_rubbish_is_swept(tmp_path):
    target = tmp_path / "model"
    with replacing_directory(target) as staging:
        (staging / "old").touch()
    program = (
        "import pathlib, sys, time\n"
        "from dacheng.formats.atomic import replacing_directory\n"
        "with replacing_directory(pathlib.Path(sys.argv[1])) as staging:\n"
        "    (staging / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    with replacing_directory(target) as staging:  # beside a living writer: its work is not touched
        (staging / "newer").touch()
    assert len(list(tmp_path.iterdir())) == 2
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert [p.name for p in target.iterdir()] == ["newer"]
    with replacing_directory(target) as staging:
        (staging / "newest").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [p.name for p in target.iterdir()] == ["newest"]
