"""One writer per output directory."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import TracebackType

from dacheng.errors import Locked

try:
    import fcntl
except ImportError:  # pragma: no cover - not POSIX: two writers are then not kept apart
    fcntl = None  # type: ignore[assignment]


class OutputLock:
    """Holds `out`/.lock while inside `with`; where `out` is a file, name the lock's own in `file`. The kernel gives the
    lock back however the process ends, kill -9 included.

    The file says who holds it (pid and host); it stays behind, unlocked: removing it would race with the next holder.
    """

    def __init__(self, out: Path, file: Path | None = None) -> None:
        self.path = file or out / ".lock"
        self._out = out
        self._handle: int | None = None

    def __enter__(self) -> OutputLock:
        """Raises Locked, naming the holder, when another process (or another trainer of this one) writes here."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 4096).decode(errors="replace")
            os.close(handle)
            raise Locked(
                f"{self._out} is being written by {_describe(holder)}",
                field=str(self.path),
                value=holder.strip() or None,
                remedy="wait for it, stop it, or use another output directory",
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _describe(holder: str) -> str:
    try:
        who = json.loads(holder)
        return f"process {who['pid']} on {who['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
