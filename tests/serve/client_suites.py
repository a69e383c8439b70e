"""Fetches openai-python's own tests, of the version that is installed, for test_openai_suite.py (make client-suites).

They are in its source distribution only. What they need beside it is installed next to them, not into the environment.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "build" / "client-suites"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def suite() -> Path:
    """The folder with `tests`, whether or not it has been fetched."""
    return FOLDER / f"openai-{version('openai')}"


def fetch() -> Path:
    """Does nothing when it is there. Raises CalledProcessError without a network."""
    found = suite()
    if (found / "ready").exists():
        return found
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = f"openai=={version('openai')}"
    subprocess.run([*PIP, "download", "-q", "--no-deps", "--no-binary=openai", wanted, "-d", str(FOLDER)], check=True)
    with tarfile.open(next(FOLDER.glob(f"openai-{version('openai')}*.tar.gz"))) as archive:
        wanted_files = [m for m in archive.getmembers() if m.name.split("/")[1:2] == ["tests"]]
        archive.extractall(FOLDER, members=wanted_files, filter="data")
    subprocess.run([*PIP, "install", "-q", "--no-deps", "--target", str(found / "deps"), "pytest-asyncio"], check=True)
    (found / "ready").touch()
    return found


if __name__ == "__main__":
    print(fetch())
