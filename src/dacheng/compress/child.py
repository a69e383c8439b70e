"""Runs dacheng.compress.measure in a process of its own, hears how far it is, and leaves none behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError

TIMEOUT_S = 3600.0


def measure_in_child(model: Path, options: dict[str, Any], heard: Callable[[int, int, str], None]) -> dict[str, Any]:
    """What `measure(model, **options)` found there. heard(done, of, what) hears its progress. The process ends with
    this call, however that ends (Ctrl-C too). Raises the DachengError that the measurement ended with."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    command = [sys.executable, "-m", "dacheng.compress.measure", json.dumps({"model": str(model)} | given)]
    told: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, text=True, env=_environment()
        )
        assert process.stdout is not None
        limit = threading.Timer(TIMEOUT_S, process.kill)
        limit.daemon = True
        limit.start()
        try:
            for line in process.stdout:
                told = _object(line)
                if "progress" in told:
                    heard(*told["progress"])
            process.wait()
        finally:
            limit.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
        complaints.seek(0)
        complaint = complaints.read()[-500:]
    if "error" in told:
        problem, where, value, remedy = told["error"]
        raise DachengError(problem, field=where, value=value, remedy=remedy)
    if "found" not in told:
        raise DachengError(f"measuring {model} failed", field="model", value=complaint or f"exit {process.returncode}",
                           remedy="load it with dacheng generate to see why")  # fmt: skip
    return told["found"]


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _environment() -> dict[str, str]:
    """The child finds this package where the parent has it, and takes its threads."""
    import torch

    source = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(part for part in (source, os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}
