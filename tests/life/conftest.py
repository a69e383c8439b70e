from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_history(tmp_path, monkeypatch):
    """No test writes the user's history; no test sees another's calls."""
    import toys

    monkeypatch.setenv("DACHENG_HOME", str(tmp_path / "home"))
    toys.Toy.calls.clear()
