"""The goldens of pruning and merging made anew from the peers' own code: `pytest -m peer tests/compress`.

DACHENG_PEER_SOURCES: a folder with checkouts named wanda, sparsegpt and mergekit (the commits that the scripts name).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.peer
SCRIPTS = Path(__file__).resolve().parents[1] / "goldens"


@pytest.mark.parametrize(("golden", "sources"), [("pruning", ("wanda", "sparsegpt")), ("merging", ("mergekit",))])
def test_goldens_are_what_the_peers_compute(tmp_path, golden, sources):
    pytest.importorskip("transformers" if golden == "pruning" else "peft")
    folder = os.environ.get("DACHENG_PEER_SOURCES")
    checkouts = [Path(folder or ".") / name for name in sources]
    if folder is None or not all(path.is_dir() for path in checkouts):
        pytest.skip(f"set DACHENG_PEER_SOURCES to a folder with {', '.join(sources)}")
    command = [sys.executable, str(SCRIPTS / f"make_{golden}.py"), *map(str, checkouts), str(tmp_path / "made.json")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    made, kept = (json.loads(p.read_text()) for p in (tmp_path / "made.json", SCRIPTS / f"{golden}.json"))
    assert len(made["cases"]) == len(kept["cases"])
    for new, old in zip(made["cases"], kept["cases"]):
        assert new.keys() == old.keys()
        for key, value in new.items():
            if isinstance(value, list) and isinstance(value[0], list):
                for row, expected in zip(value, old[key]):
                    assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
            else:
                assert value == old[key]
