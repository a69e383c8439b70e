"""Labels on disk: JSON lines that are only ever appended to. Whoever changes their mind adds a line."""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError, UsageError

CHOICES = ("a", "b", "tie", "skip", "undo")
LONGEST_NAME, LONGEST_NOTE = 64, 2000  # characters
_MAX_LINE = 1 << 16  # bytes; what is longer was not written by us


@dataclass(frozen=True, slots=True)
class Label:
    """What an annotator said of a pair. choice: the reply that is better, "tie", "skip" (cannot say), or "undo", which
    takes back what they said before. strength: 1 better, 2 much better, 0 for the rest. first: which reply they were
    shown first. seconds: from showing to choosing. time: ISO 8601, UTC.

    Raises UsageError for values that are none.
    """

    pair: str
    annotator: str
    choice: str
    strength: int = 0
    first: str = "a"
    seconds: float | None = None
    note: str = ""
    time: str = ""

    def __post_init__(self) -> None:
        check_annotator(self.annotator)
        right = {
            "pair": isinstance(self.pair, str) and 0 < len(self.pair) <= 64,
            "choice": self.choice in CHOICES,
            "strength": self.strength in ((1, 2) if self.choice in ("a", "b") else (0,))
            and not isinstance(self.strength, bool),
            "first": self.first in ("a", "b"),
            "seconds": self.seconds is None or (_is_number(self.seconds) and self.seconds >= 0),
            "note": isinstance(self.note, str) and len(self.note) <= LONGEST_NOTE,
            "time": isinstance(self.time, str) and len(self.time) <= 64,
        }
        for name, fine in right.items():
            if not fine:
                raise UsageError("this is no label", field=name, value=getattr(self, name),
                                 remedy=f"choice: one of {', '.join(CHOICES)}; strength: 1, 2 with a, b")  # fmt: skip

    @property
    def score(self) -> int | None:
        """-2 (a is much better) to 2 (b is much better); None where nothing was said."""
        return {"a": -self.strength, "b": self.strength, "tie": 0}.get(self.choice)


def check_annotator(name: Any) -> str:
    """The name, which is to be 1 to 64 characters that can be seen. Raises UsageError."""
    seen = isinstance(name, str) and name == name.strip() and 0 < len(name) <= LONGEST_NAME
    if not seen or any(unicodedata.category(letter).startswith("C") for letter in name):
        raise UsageError("this cannot be the name of an annotator", field="annotator", value=name,
                         remedy=f"1 to {LONGEST_NAME} letters, digits and spaces")  # fmt: skip
    return name


class LabelStore:
    """A file of labels. Several processes may append to it at the same time."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def append(self, label: Label) -> Label:
        """Writes the label with the time, and returns it: it is on the disk then. Raises DachengError if not."""
        stamped = Label(**{**asdict(label), "time": datetime.now(UTC).isoformat(timespec="seconds")})
        line = json.dumps(asdict(stamped), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                _locked_append(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            raise DachengError(
                f"the label was not written: {error.strerror or error}",
                field="--out",
                value=str(self.path),
                remedy="free space there, or name another file",
            ) from error
        return stamped

    def read(self) -> tuple[list[Label], int]:
        """(every label in the order of the file, how many lines are none). A killed writer leaves one at most."""
        found, damaged = [], 0
        if not self.path.exists():
            return [], 0
        try:
            with self.path.open("rb") as file:
                while line := file.readline(_MAX_LINE + 1):
                    label = _parsed(line)
                    if label is not None:
                        found.append(label)
                    elif line.strip():
                        damaged += 1
        except OSError as error:
            raise DachengError(f"the labels cannot be read: {error.strerror}", field="labels", value=str(self.path),
                               remedy="check the path") from error  # fmt: skip
        return found, damaged


def _locked_append(handle: int, line: bytes) -> None:
    with suppress(ImportError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        line = b"\n" + line  # a killed writer left a torn line: do not continue it
    if os.write(handle, line) != len(line):
        raise OSError("the disk filled up inside a line")
    os.fsync(handle)


def _parsed(line: bytes) -> Label | None:
    try:
        value = json.loads(line)
        return Label(**value) if isinstance(value, Mapping) else None
    except (ValueError, RecursionError, TypeError, UsageError):
        return None


def in_force(labels: Iterable[Label]) -> dict[tuple[str, str], Label]:
    """{(annotator, pair): the label that counts}: the last one, and none where that is an undo."""
    found: dict[tuple[str, str], Label] = {}
    for label in labels:
        found.pop((label.annotator, label.pair), None)
        if label.choice != "undo":
            found[label.annotator, label.pair] = label
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
