from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from small_stages import STAGES

from dacheng.life.graph import parse
from dacheng.life.run import LifeResult, run_life


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DACHENG_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Eighty small Python files, no two alike."""
    folder = tmp_path_factory.mktemp("corpus")
    draw, names = random.Random(0), ["width", "height", "count", "total", "name", "value", "index", "result"]
    for number in range(80):
        a, b, c = draw.sample(names, 3)
        text = f'"""File {number}."""\n\n\ndef add_{a}_{number}({a}, {b}):\n    """The {c} of {a} and {b}."""\n'
        text += f"    {c} = {a} + {b} * {draw.randrange(100)}\n    return {c}\n"
        (folder / f"file_{number:02d}.py").write_text(text)
    return folder


@pytest.fixture(scope="session")
def make_life(corpus):
    """Runs the small life in a folder, with overrides and only the stages up to one."""

    def go(out: Path, *overrides: str, until: str = "report", **options) -> LifeResult:
        os.environ.setdefault("DACHENG_HOME", str(out / "home"))
        names = [stage["name"] for stage in STAGES]
        stages = STAGES[: names.index(until) + 1]
        return run_life(
            parse({"name": "small", "stages": stages}, [f"data.source={corpus}", *overrides]), out, **options
        )

    return go


@pytest.fixture(scope="session")
def small_life(make_life, tmp_path_factory) -> LifeResult:
    return make_life(tmp_path_factory.mktemp("life"))
