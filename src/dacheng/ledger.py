"""What each stage cost: tokens, FLOPs, time, memory, energy, money and drops, in an append-only JSONL file.

One line per finished entry, written by one `os.write` with O_APPEND, so lines of several processes never mix. An entry
that lasts is also written every HEARTBEAT_S from `add`, with status "running"; the last line of an id stands. A
`kill -9` therefore loses at most the seconds since then, and at worst tears the last line, which readers recognise.

Nesting: an entry opened inside another carries its `parent`. Times, memory, energy, labour and money of an entry
include what was nested in it; tokens, flops, drops and further numbers are each written in exactly one entry, the one
`add` was called on. `totals` therefore adds up the former over outermost entries only and the latter over all.
"""

from __future__ import annotations

import json
import logging
import math
import numbers as abstract
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError, UsageError
from dacheng.meters import EnergyMeter, cpu_seconds, peak_bytes, peak_bytes_children
from dacheng.prices import Prices
from dacheng.records import Drops

__all__ = ["Entry", "Ledger", "Prices", "read_entries"]

log = logging.getLogger(__name__)

HEARTBEAT_S = 30.0
_NUMBER_FIELDS = "wall_s", "cpu_s", "peak_bytes", "peak_bytes_children", "tokens", "flops", "joules", "labour_hours"
_TEXT_FIELDS = "id", "stage", "time", "status", "joules_kind", "currency"
_MAP_FIELDS = "labels", "money", "drops", "numbers"
_OWN_FIELDS = {*_NUMBER_FIELDS, *_TEXT_FIELDS, *_MAP_FIELDS, "parent", "error", "assumed"}
_open_entries: ContextVar[tuple[Entry, ...]] = ContextVar("open_entries", default=())


class Entry:
    """One measured stretch of work. Made by `Ledger.measure`; figures go in through `add`."""

    def __init__(self, ledger: Ledger, stage: str, labels: dict[str, Any], outer: Entry | None) -> None:
        self.ledger, self.stage, self.labels, self.outer = ledger, stage, labels, outer
        self.id = uuid.uuid4().hex[:16]
        self.tokens, self.flops, self.labour_hours = 0, 0.0, 0.0
        self.numbers: dict[str, float] = {}
        self.drops: dict[str, Any] = {}
        self.status = "running"
        self.error: str | None = None
        self._lock = threading.Lock()  # data workers and the main loop may add to one entry
        self._time = time.time()
        self._began = self._written = time.perf_counter()
        self._cpu_began = cpu_seconds()
        self._energy = EnergyMeter()

    def add(
        self,
        *,
        tokens: int = 0,
        flops: float = 0.0,
        drops: Drops | Mapping[str, Any] | None = None,
        labour_hours: float = 0.0,
        **numbers: float,
    ) -> None:
        """Adds to the entry's figures (every call adds, none replaces). Cheap enough to call once a training step.

        labour_hours: a person's time spent on this entry; a machine running alone is nobody's labour. Raises UsageError
        for a figure that is not a finite number or bears the name of one of the entry's own fields, and once closed.
        """
        given = {"tokens": tokens, "flops": flops, "labour_hours": labour_hours, **numbers}
        for name, value in given.items():
            # abstract.Real: numpy's integers and floats too
            if isinstance(value, bool) or not isinstance(value, abstract.Real) or not math.isfinite(value):
                raise UsageError("a ledger figure is a finite number", field=name, value=value, remedy="leave it out")
            if name in numbers and name in _OWN_FIELDS:
                raise UsageError("the ledger measures this itself", field=name, value=value, remedy="rename it")
        dropped = drops.to_dict() if isinstance(drops, Drops) else dict(drops or {})
        _require_json("drops", dropped)
        with self._lock:
            if self.status != "running":
                raise UsageError("this entry is closed", field="stage", value=self.stage, remedy="add inside the with")
            self.tokens += int(tokens)
            self.flops += float(flops)
            for name, value in numbers.items():
                plain = int(value) if isinstance(value, abstract.Integral) else float(value)
                self.numbers[name] = self.numbers.get(name, 0) + plain
            merge_counts(self.drops, dropped)
        entry: Entry | None = self
        while (
            labour_hours and entry is not None
        ):  # hours, unlike seconds, do not pass for the outer entry by themselves
            with entry._lock:
                entry.labour_hours += float(labour_hours)
            entry = entry.outer
        if time.perf_counter() - self._written >= HEARTBEAT_S:
            self.write()

    def write(self) -> None:
        """Writes the entry as it stands now; a later line of the same entry replaces this one."""
        self._written = time.perf_counter()
        self.ledger._append(self.line())

    def line(self) -> dict[str, Any]:
        """The entry as one line of the file (the fields are listed in `Ledger`)."""
        prices = self.ledger.prices
        wall_s = time.perf_counter() - self._began
        measured = self._energy.joules()
        joules = wall_s * prices.watts if measured is None else measured
        with self._lock:
            return {
                "id": self.id,
                "parent": None if self.outer is None else self.outer.id,
                "stage": self.stage,
                "time": datetime.fromtimestamp(self._time, UTC).isoformat(timespec="microseconds"),
                "status": self.status,
                "error": self.error,
                "labels": self.labels,
                "wall_s": wall_s,
                "cpu_s": max(0.0, cpu_seconds() - self._cpu_began),
                "peak_bytes": peak_bytes(),
                "peak_bytes_children": peak_bytes_children(),
                "tokens": self.tokens,
                "flops": self.flops,
                "joules": joules,
                "joules_kind": "estimated" if measured is None else "measured",
                "money": prices.money(joules, wall_s, self.labour_hours),
                "currency": prices.currency,
                "assumed": list(prices.assumed),
                "labour_hours": self.labour_hours,
                "drops": dict(self.drops),
                "numbers": dict(self.numbers),
            }

    def _close(self, status: str, error: str | None) -> None:
        self.status, self.error = status, error
        self._energy.stop()
        self.write()


class Ledger:
    """Measures stages and adds them up. path None keeps the entries in memory only.

    Fields of a line: id, parent, stage, time (start, ISO 8601 UTC), status (done, failed, interrupted; running while
    open or when killed), error, labels; wall_s; cpu_s (user and system, waited-for children included; of the whole
    process, so threads overlap); peak_bytes (largest resident size of this process so far) and peak_bytes_children
    (of its largest waited-for child); tokens; flops; joules and joules_kind (measured: RAPL of the CPU packages, other
    processes included; estimated: stated watts x wall_s); money {power, hardware, labour} in `currency`; assumed (the
    prices nobody stated); drops; numbers.
    """

    def __init__(self, path: Path | str | None = None, prices: Prices | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.prices = prices if prices is not None else Prices.load(None)
        self.damage: list[str] = []
        self._memory: list[dict[str, Any]] = []
        self._opened = time.time()
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def measure(self, stage: str, **labels: Any) -> Iterator[Entry]:
        """Measures the body of a `with`. An exception closes the entry as failed (Ctrl-C and exit: interrupted) and
        goes on its way. `labels` are kept as they are; UsageError for one that JSON cannot hold."""
        _require_json("labels", labels)
        others = _open_entries.get()
        entry = Entry(self, stage, labels, next((e for e in reversed(others) if e.ledger is self), None))
        _open_entries.set((*others, entry))
        try:
            yield entry
        except BaseException as error:
            asked_to_stop = getattr(error, "exit_code", None) == 130  # a trainer that has saved and ended
            interrupted = asked_to_stop or isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit))
            reason = f"{type(error).__name__}: {getattr(error, 'problem', error)}"
            try:
                entry._close("interrupted" if interrupted else "failed", reason)
            except DachengError as unwritten:  # a full disk must not hide what went wrong first
                error.add_note(f"and the ledger entry was not written: {unwritten}")
            raise
        else:
            entry._close("done", None)
        finally:
            _open_entries.set(tuple(other for other in _open_entries.get() if other is not entry))

    def entries(self) -> list[dict[str, Any]]:
        """All entries in order of their start, the file's other writers' included. `damage` lists unreadable lines."""
        if self.path is None:
            return _latest(self._memory)
        found, self.damage = read_entries(self.path)
        return found

    def totals(self, stage: str | None = None) -> dict[str, Any]:
        """Sums over all entries, or over those of `stage` with what is nested in them; see the module on nesting.

        Beside the sums: entries and statuses (counts of the outermost), peak_bytes (largest), joules_kind (measured,
        estimated, or mixed with the parts beside it), money with its total (None in more than one currency:
        money_by_currency), assumed, damaged_lines.
        """
        outermost, nested = _select(self.entries(), stage)
        joules = {kind: sum(e["joules"] for e in outermost if e["joules_kind"] == kind) for kind in _JOULES_KINDS}
        kinds = {entry["joules_kind"] for entry in outermost}
        money: dict[str, dict[str, float]] = {}
        drops: dict[str, Any] = {}
        numbers: dict[str, float] = {}
        statuses: dict[str, int] = {}
        for entry in outermost:
            merge_counts(money.setdefault(entry["currency"], {}), entry["money"])
            statuses[entry["status"]] = statuses.get(entry["status"], 0) + 1
        for entry in nested:
            merge_counts(drops, entry["drops"])
            merge_counts(numbers, entry["numbers"])
        for parts in money.values():
            parts["total"] = math.fsum(parts.values())
        return {
            "entries": len(outermost),
            "statuses": statuses,
            "wall_s": math.fsum(entry["wall_s"] for entry in outermost),
            "cpu_s": math.fsum(entry["cpu_s"] for entry in outermost),
            "peak_bytes": max((entry["peak_bytes"] for entry in nested), default=0),
            "peak_bytes_children": max((entry["peak_bytes_children"] for entry in nested), default=0),
            "tokens": sum(entry["tokens"] for entry in nested),
            "flops": math.fsum(entry["flops"] for entry in nested),
            "joules": joules["measured"] + joules["estimated"],
            "joules_kind": kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "estimated",
            "joules_measured": joules["measured"],
            "joules_estimated": joules["estimated"],
            "money": next(iter(money.values())) if len(money) == 1 else None if money else {},
            "currency": next(iter(money)) if len(money) == 1 else None if money else self.prices.currency,
            "money_by_currency": money,
            "assumed": sorted({name for entry in outermost for name in entry["assumed"]}),
            "labour_hours": math.fsum(entry["labour_hours"] for entry in outermost),
            "drops": drops,
            "numbers": numbers,
            "damaged_lines": len(self.damage),
        }

    def reconcile(self, wall_s: float, since: float | None = None) -> dict[str, float]:
        """Holds the entries against a wall meter started when this Ledger was opened (or at `since`, seconds of epoch).

        Returns seconds: attributed (covered by at least one entry), unattributed (wall_s minus that; below zero means
        that the meter started after the ledger), overlapping (covered more than once, by threads or processes).
        """
        start = self._opened if since is None else since
        spans = []
        for entry in _select(self.entries(), None)[0]:
            began = datetime.fromisoformat(entry["time"]).timestamp()
            if began >= start - 1e-3:
                spans.append((began, began + entry["wall_s"]))
        covered, end = 0.0, -math.inf
        for began, ended in sorted(spans):
            covered += max(0.0, ended - max(began, end))
            end = max(end, ended)
        total = math.fsum(ended - began for began, ended in spans)
        return {"attributed": covered, "unattributed": wall_s - covered, "overlapping": max(0.0, total - covered)}

    def _append(self, line: dict[str, Any]) -> None:
        if self.path is None:
            self._memory.append(line)
            return
        data = (json.dumps(line, allow_nan=False) + "\n").encode("ascii")
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":
                    data = b"\n" + data  # a killed writer left a torn line: do not continue it
                written = os.write(handle, data)
            finally:
                os.close(handle)
        except OSError as error:
            raise DachengError(
                f"the ledger cannot be written: {error}", field="ledger", value=str(self.path), remedy="free some space"
            ) from error
        if written != len(data):
            raise DachengError(
                "the disk filled up inside a ledger line",
                field="ledger",
                value=str(self.path),
                remedy="free some space",
            )


_JOULES_KINDS = ("measured", "estimated")


def read_entries(path: Path | str) -> tuple[list[dict[str, Any]], list[str]]:
    """Entries of a ledger file by start, the last line of each, and a description of every line that is unreadable.

    A missing file has no entries. Torn or altered lines never stop the reading: the others stand.
    """
    try:
        pieces = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], []
    lines, damage = [], []
    for number, raw in enumerate(pieces, start=1):
        if not raw.strip():
            continue
        try:
            lines.append(_checked(json.loads(raw)))
        except (ValueError, RecursionError) as error:
            what = "torn, its writer was killed" if number == len(pieces) else f"unreadable, {error}"
            damage.append(f"{path}:{number}: {what}: {raw[:60]!r}")
    for description in damage:
        log.warning("ledger %s", description)
    return _latest(lines), damage


def _checked(line: Any) -> dict[str, Any]:
    """The line if totals can be made of it; ValueError otherwise."""
    if not isinstance(line, dict) or not set(line) >= _OWN_FIELDS:
        raise ValueError("not an entry")
    for names, kind in ((_NUMBER_FIELDS, (int, float)), (_TEXT_FIELDS, str), (_MAP_FIELDS, dict)):
        for name in names:
            if not isinstance(line[name], kind):
                raise ValueError(f"{name} is {line[name]!r}")
    if not isinstance(line["parent"], str | None) or not isinstance(line["assumed"], list):
        raise ValueError("parent or assumed is of another kind")
    datetime.fromisoformat(line["time"])
    return line


def _latest(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last line of each id, by start."""
    return sorted({line["id"]: line for line in lines}.values(), key=lambda line: line["time"])


def _select(entries: list[dict[str, Any]], stage: str | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The entries of `stage` (None: all) that are not nested in another of them, and these with all nested in them."""
    parents = {entry["id"]: entry["parent"] for entry in entries}
    chosen = {entry["id"] for entry in entries if stage is None or entry["stage"] == stage}
    outermost, nested = [], []
    for entry in entries:
        above, current = set(), parents[entry["id"]]
        while current in parents and current not in above:  # a killed parent is not in the file: its child stands alone
            above.add(current)
            current = parents[current]
        if entry["id"] in chosen and not above & chosen:
            outermost.append(entry)
        if entry["id"] in chosen or above & chosen:
            nested.append(entry)
    return outermost, nested


def merge_counts(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Adds numbers and merges maps, key by key; of texts and lists (an example) the first is kept.

    UsageError where one name means a number here and a map there: a sum of the two would be wrong, dropping one too.
    """
    for name, value in more.items():
        there = total.get(name, {} if isinstance(value, Mapping) else 0 if isinstance(value, (int, float)) else value)
        if isinstance(value, Mapping) and isinstance(there, dict):
            merge_counts(total.setdefault(name, {}), value)
        elif isinstance(value, (int, float)) and isinstance(there, (int, float)):
            total[name] = there + value
        elif type(there) is type(value):
            total[name] = there
        else:
            raise UsageError("this name counts different things", field=name, value=[there, value], remedy="rename one")


def _require_json(field: str, value: Any) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the ledger cannot write this: {error}", field=field, value=value) from None
