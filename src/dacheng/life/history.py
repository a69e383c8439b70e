"""Every run that ended, in one file of the user's: what `dacheng history` lists and `--model NAME` looks up."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dacheng.formats.json_files import plain


@dataclass(slots=True)
class Run:
    """One line of the history. `model` is the model directory that the run made, if it made one."""

    name: str
    path: Path
    when: str
    status: str
    model: Path | None = None
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        return self.path.exists()


def history_path() -> Path:
    """$DACHENG_HOME/history.jsonl, else under $XDG_DATA_HOME/dacheng or ~/.local/share/dacheng."""
    own = os.environ.get("DACHENG_HOME")
    base = os.environ.get("XDG_DATA_HOME")
    folder = Path(own) if own else (Path(base) if base else Path.home() / ".local" / "share") / "dacheng"
    return folder / "history.jsonl"


def remember(
    name: str, path: Path, status: str, *, model: Path | None = None, metrics: Mapping[str, Any] | None = None
) -> None:
    """Appends one run, in a single write, so that lines of several processes never mix. Raises OSError."""
    record = {
        "name": name,
        "path": str(path.resolve()),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": status,
        "model": None if model is None else str(model.resolve()),
        "metrics": plain(dict(metrics or {})),
    }
    target = history_path()
    target.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(target, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        torn = size and os.pread(handle, 1, size - 1) != b"\n"  # a killed writer's half line is not continued
        os.write(handle, (b"\n" if torn else b"") + json.dumps(record).encode("ascii") + b"\n")
    finally:
        os.close(handle)


def runs() -> tuple[list[Run], int]:
    """All runs, oldest first, those whose directory is gone included; and how many lines could not be read."""
    found, unreadable = [], 0
    try:
        lines = history_path().read_bytes().splitlines()
    except FileNotFoundError:
        return [], 0
    for line in lines:
        try:
            record = json.loads(line)
            model = None if record["model"] is None else Path(record["model"])
            path, metrics = Path(record["path"]), dict(record["metrics"])
            found.append(Run(record["name"], path, record["when"], record["status"], model, metrics))
        except (ValueError, TypeError, KeyError):
            unreadable += bool(line.strip())
    return found, unreadable


def model_named(name: str) -> Path | None:
    """The newest model of a run called `name` that is still there."""
    for run in reversed(runs()[0]):
        if run.name == name and run.model is not None and run.model.is_dir():
            return run.model
    return None
