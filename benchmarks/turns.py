"""Two processes that take turns, so that a noisy machine treats both alike.

A worker prints a JSON line when it is ready, then for each line on its standard input runs one turn and answers with a
JSON line of figures. Between turns it sleeps: two thread pools at work in one machine would slow each other.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def serve(ready: dict[str, Any], turn: Callable[[], dict[str, Any]]) -> None:
    """The worker's side."""
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        print(json.dumps(turn()), flush=True)


class Worker:
    """The conductor's side: a process started with this benchmark's own arguments plus `--worker NAME`."""

    def __init__(self, python: str, name: str, script: str, arguments: list[str], threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        source = Path(__file__).resolve().parent.parent / "src"
        if name == "ours":
            environment["PYTHONPATH"] = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
        self.name = name
        self.process = subprocess.Popen(
            [python, script, "--worker", name, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.ready = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"the {self.name} worker ended with code {self.process.wait()}: see its message above")

    def turn(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def interleave(workers: list[Worker], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """One uncounted turn each, then `rounds` turns each, the order reversed every round."""
    for worker in workers:
        worker.turn()
    turns: dict[str, list[dict[str, Any]]] = {worker.name: [] for worker in workers}
    for i in range(rounds):
        for worker in workers if i % 2 == 0 else workers[::-1]:
            turns[worker.name].append(worker.turn())
    return turns


def ratios(ours: list[float], peer: list[float]) -> dict[str, float]:
    """The median of the paired ratios and their interquartile range: each round is a pair under the same conditions."""
    paired = sorted(a / b for a, b in zip(ours, peer, strict=True))
    quarters = statistics.quantiles(paired, n=4) if len(paired) > 1 else [paired[0]] * 3
    return {
        "ratio": round(statistics.median(paired), 3),
        "ratio_q1": round(quarters[0], 3),
        "ratio_q3": round(quarters[2], 3),
        "ratio_min": round(paired[0], 3),
        "ratio_max": round(paired[-1], 3),
    }
