"""Reading a step log while it is written, and what it shows after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP_LOG = "log.jsonl"


def read_log(path: Path, offset: int = 0) -> list[dict[str, Any]]:
    """The whole lines from byte `offset` on; torn ones are passed over. [] where there is no log."""
    return [line for line, _ in _lines(path, offset)]


def _lines(path: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Each line with the offset behind it."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return
    for raw in data.splitlines(keepends=True):
        if not raw.endswith(b"\n"):
            return  # its writer is still at it
        offset += len(raw)
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line, offset


class LogTail:
    """Reads a log as it grows."""

    def __init__(self, path: Path) -> None:
        self.path, self._offset = path, 0

    def new_lines(self) -> list[dict[str, Any]]:
        found = list(_lines(self.path, self._offset))
        self._offset = found[-1][1] if found else self._offset
        return [line for line, _ in found]


@dataclass(frozen=True, slots=True)
class Repeats:
    """compared: steps that were done more than once; differing: those of them whose loss or gradient differs."""

    compared: int
    differing: tuple[int, ...]

    @property
    def bit_identical(self) -> bool:
        return not self.differing


def compare_repeats(path: Path) -> Repeats:
    """What a log shows of the steps that were lost in a kill and done again."""
    seen: dict[int, list[tuple[float, float]]] = {}
    for line in read_log(path):
        if "step" in line:
            seen.setdefault(line["step"], []).append((line["loss"], line["grad_norm"]))
    repeated = {step: figures for step, figures in seen.items() if len(figures) > 1}
    return Repeats(len(repeated), tuple(step for step, figures in sorted(repeated.items()) if len(set(figures)) > 1))
