"""The journal of a run: JSON lines, only ever appended to, one write a line.

Whoever shows a run (terminal, page, report) reads this file and nothing else. A killed writer leaves at most one torn
line, at the end: readers wait for the rest of it or, where another line follows, count it and go on.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError
from dacheng.formats.json_files import plain

FILE_NAME = "events.jsonl"
MAX_LINE = 1 << 20  # bytes; what is longer was not written by us
_OWN = ("n", "time", "kind")


@dataclass(frozen=True, slots=True)
class Event:
    """n: 1, 2, 3… in the order of the file. time: ISO 8601, UTC. values: all else of the line, by kind."""

    n: int
    time: str
    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    def to_dict(self) -> dict[str, Any]:
        return {"n": self.n, "time": self.time, "kind": self.kind, **self.values}


class Journal:
    """The one writer of a journal (whoever opens it holds the run's lock). Several threads may write."""

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Goes on after what is there. Raises DachengError when the file cannot be opened."""
        self.path, self._clock, self._lock = path, clock, threading.Lock()
        self._listeners: list[Callable[[Event], None]] = []
        found, self.torn = read_events(path)
        self._last = found[-1].n if found else 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unwritten(path, error) from error
        size = os.fstat(self._handle).st_size
        if size and os.pread(self._handle, 1, size - 1) != b"\n":
            os.write(self._handle, b"\n")  # a killed writer left a torn line: do not continue it

    def listen(self, heard: Callable[[Event], None]) -> None:
        """heard: called with each event that is written from now on, by the thread that writes it."""
        self._listeners.append(heard)

    def write(self, kind: str, **values: Any) -> Event:
        """Appends one event. Values go through json_files.plain. Raises DachengError when the disk is full."""
        if clash := set(_OWN) & values.keys():
            raise ValueError(f"an event has these of its own: {clash}")
        with self._lock:
            event = Event(self._last + 1, self._clock().isoformat(timespec="milliseconds"), kind, plain(values))
            line = json.dumps(event.to_dict(), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
            try:
                written = os.write(self._handle, line)
            except OSError as error:
                raise _unwritten(self.path, error) from error
            if written != len(line):
                raise _unwritten(self.path, OSError("the disk filled up inside a line"))
            self._last = event.n
        for heard in self._listeners:
            heard(event)
        return event

    def close(self) -> None:
        os.close(self._handle)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Tail:
    """Reads a journal from where it stopped reading. torn: lines so far that are no events."""

    def __init__(self, path: Path, after: int = 0) -> None:
        self.path, self.torn = path, 0
        self._last, self._offset = after, 0

    def read(self) -> list[Event]:
        """The events that came since, whole lines only; [] while the file is not there."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        self._offset += end
        found = []
        for line in data[:end].split(b"\n")[:-1]:
            event = _parsed(line)
            if event is None:
                self.torn += bool(line.strip())
            elif event.n > self._last:
                self._last = event.n
                found.append(event)
        return found


def read_events(path: Path, after: int = 0) -> tuple[list[Event], int]:
    """(events with n > after, how many lines are no events). A torn last line is not counted: it may yet be whole."""
    tail = Tail(path, after)
    return tail.read(), tail.torn


def follow(
    path: Path, after: int = 0, *, stopped: Callable[[], bool] = lambda: False, poll_s: float = 0.1
) -> Iterator[Event]:
    """Events with n > after, those that are still to come too, until `stopped` and all that is there was given."""
    tail = Tail(path, after)
    while True:
        ending = stopped()
        found = tail.read()
        yield from found
        if ending and not found:
            return
        if not found:
            time.sleep(poll_s)


def _parsed(line: bytes) -> Event | None:
    if len(line) > MAX_LINE:
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("time", "kind")):
        return None
    n = value.get("n")
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        return None
    return Event(n, value["time"], value["kind"], {k: v for k, v in value.items() if k not in _OWN})


def _unwritten(path: Path, error: OSError) -> DachengError:
    return DachengError(
        f"the journal cannot be written: {error}", field="events", value=str(path), remedy="free some space"
    )
