"""What the benchmarks share: workers in fresh processes, taken in turn, their peak memory, and one JSON line a figure.

A benchmark starts itself again as a worker (`python benchmarks/x.py --worker ours …`, the peer's under the interpreter
that has it installed); a worker prints its measurements as one JSON object, the last line of its output. Only the
standard library is used here, so that any interpreter can run a worker.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turns import ratios

SAMPLE_S = 0.02


def need(module: str, package: str) -> None:
    """Ends the benchmark at once, with the command that helps, where a library it compares with is not installed."""
    if importlib.util.find_spec(module) is None:
        raise SystemExit(f"this needs {package}: {sys.executable} -m pip install {package}")


@dataclass
class Run:
    """One worker's run: what it printed, and the largest resident memory of it and its children together. `failed`: how
    it ended, where it ended badly and the others went on; then the rest says nothing."""

    result: dict[str, Any]
    peak_bytes: int | None
    wall_s: float
    failed: str = ""


def run_worker(command: Sequence[str], env: Mapping[str, str] | None = None, timeout_s: float = 3600) -> Run:
    """Runs a worker to its end. Raises RuntimeError with the end of its error output if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        list(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )
    peak = _PeakMemory(process.pid)
    try:
        out, err = process.communicate(timeout=timeout_s)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        peak.stop()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}:\n{err[-3000:]}")
    return Run(json.loads(out.strip().splitlines()[-1]), peak.bytes, time.perf_counter() - started)


class _PeakMemory(threading.Thread):
    """Samples the resident memory of a process and its descendants (Linux; None elsewhere).

    Pages that several processes share count once for each: a sum over processes is an upper bound.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.bytes: int | None = None
        self._pid, self._stopped = pid, threading.Event()
        if Path("/proc/self/statm").exists():
            self.start()

    def run(self) -> None:
        while not self._stopped.wait(SAMPLE_S):
            self.bytes = max(self.bytes or 0, sum(map(_resident, _tree(self._pid))))

    def stop(self) -> None:
        self._stopped.set()
        if self.is_alive():
            self.join()


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:
                continue  # the thread ended between listing and reading
    return found


def interleave(
    workers: Mapping[str, Sequence[str]],
    rounds: int,
    env: Mapping[str, Mapping[str, str]] | None = None,
    keep_going: bool = False,
) -> dict[str, list[Run]]:
    """Runs each worker once a round, in an order that turns about, so that a machine that slows down slows all.
    keep_going: a worker that fails is shown, and kept as a run that `failed`; otherwise it is a RuntimeError."""
    runs: dict[str, list[Run]] = {name: [] for name in workers}
    for number in range(rounds):
        names = list(workers) if number % 2 == 0 else list(workers)[::-1]
        for name in names:
            try:
                runs[name].append(run_worker(workers[name], (env or {}).get(name)))
            except (RuntimeError, json.JSONDecodeError, IndexError, subprocess.TimeoutExpired) as error:
                if not keep_going:
                    raise
                print(f"round {number + 1}/{rounds} {name} FAILED: {error}", file=sys.stderr, flush=True)
                runs[name].append(Run({}, None, 0.0, str(error)))
                continue
            print(f"round {number + 1}/{rounds} {name}: {runs[name][-1].wall_s:.1f} s", file=sys.stderr, flush=True)
    return runs


def _spread(values: Sequence[float]) -> list[float]:
    return [round(min(values), 4), round(max(values), 4)]


def emit(
    figure: str,
    ours: Sequence[float],
    peer: Sequence[float] | None,
    *,
    unit: str,
    threads: int,
    higher_is_better: bool = True,
    **extra: Any,
) -> dict[str, Any]:
    """Prints one figure as one JSON line: medians over the rounds with lowest and highest, and the median of the
    rounds' own ratios, which is over 1 where ours is better. Without a peer there is no ratio."""
    line: dict[str, Any] = {"figure": figure, "ours": round(statistics.median(ours), 4)}
    if peer is not None:
        line["peer"] = round(statistics.median(peer), 4)
        line |= ratios(list(ours), list(peer)) if higher_is_better else ratios(list(peer), list(ours))
    line |= {"unit": unit, "rounds": len(ours), "threads": threads, "ours_spread": _spread(ours)}
    if peer is not None:
        line["peer_spread"] = _spread(peer)
    line |= extra
    print(json.dumps(line, ensure_ascii=False), flush=True)
    return line
