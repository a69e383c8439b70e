"""Shared fixtures. Data outside the repository is optional: tests that want it skip, saying why, when it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data files: $DACHENG_TEST_DATA, or ../shared/data beside the checkout."""
    path = Path(os.environ.get("DACHENG_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip("real data files are absent: set DACHENG_TEST_DATA to a folder that has them")
    return path


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Reference results made by the peers' own code, with the scripts that made them."""
    return Path(__file__).resolve().parent / "goldens"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache or history."""
    monkeypatch.setenv("DACHENG_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.setenv("DACHENG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
