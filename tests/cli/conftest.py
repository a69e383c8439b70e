from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOYS = """
import time
from dataclasses import dataclass
from dacheng.errors import DachengError
from dacheng.records import Artifact


class Toy:
    VERSION, KIND, INPUTS = 1, "toy", {}

    @dataclass(frozen=True, kw_only=True)
    class Config:
        what: str = "work"
        seconds: float = 0.0

    @staticmethod
    def run(config, inputs, out, context):
        again = (out / "begun").exists()
        (out / "begun").write_text("x")
        print_once = context.reporter.note("begun")
        if config.what == "fail":
            raise DachengError("it failed", field="what", value="fail", remedy="set it to work")
        if config.what == "crash":
            raise ZeroDivisionError("a bug")
        if config.what == "full":
            raise OSError(28, "No space left on device", str(out))
        if config.what == "sleep" and not again:
            time.sleep(60)
        (out / "done").write_text("y")
        return Artifact("toy", out / "done", metrics={"again": int(again)})
"""
LIFE = """
name: toy
stages:
  - {name: first, do: "cli_toys:Toy"}
  - {name: second, do: "cli_toys:Toy"}
"""


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("DACHENG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with a life of toy stages: life.yaml."""
    folder = tmp_path / "work place"
    folder.mkdir()
    (folder / "cli_toys.py").write_text(TOYS)
    (folder / "life.yaml").write_text(LIFE)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "cli_toys", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def dacheng(place):
    """Runs the command line in a process of its own."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dacheng.cli", *words], capture_output=True, text=True, timeout=300
        )

    return run
