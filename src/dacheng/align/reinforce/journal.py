"""What was sampled and judged, kept before it is used: a resumed run asks no model, no judge and no clock again.

rollouts.jsonl      a line a rollout, and one that closes the set: {"set", "closed": how many}
rewards.jsonl       the same for what the rewards said
sets/00000012.safetensors   the set as the loss reads it: old and reference log-probabilities, advantages, figures
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from dacheng.data.rollouts import Rollout, RolloutBatch
from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.json_files import parse_json, plain
from dacheng.formats.safetensors_header import read_header
from dacheng.formats.safetensors_io import read_tensors, sha256_file, write_tensors
from dacheng.train.lock import OutputLock

ROLLOUTS, REWARDS, SETS = "rollouts.jsonl", "rewards.jsonl", "sets"
MAX_LINE_BYTES = 16 << 20


class LineJournal:
    """Groups of lines in one append-only file. A group counts once its closing line is there; lines of one that is not
    closed, and a torn last line, are what a killed process left: they are cut off when the file is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._spans: dict[int, tuple[int, int]] = {}  # set -> bytes of its lines
        end = self._scan() if path.exists() else 0
        self._handle: int | None = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        if os.fstat(self._handle).st_size > end:
            os.ftruncate(self._handle, end)

    def _scan(self) -> int:
        """Finds the closed groups; returns where the last of them ends."""
        end = first = position = count = 0
        with open(self.path, "rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                position += len(line)
                try:
                    value = parse_json(line) if line.endswith(b"\n") else None
                except ValueError:
                    value = None
                if not isinstance(value, dict) or not isinstance(value.get("set"), int):
                    break
                if "closed" not in value:
                    count += 1
                    continue
                if value["closed"] != count:
                    raise DamagedFile(
                        f"{self.path}: set {value['set']} has {count} lines of {value['closed']}", field="file",
                        value=str(self.path), remedy="start the run in another directory",
                    )  # fmt: skip
                self._spans[value["set"]] = (first, position - len(line))
                end = first = position
                count = 0
        return end

    def __contains__(self, number: int) -> bool:
        return number in self._spans

    def read(self, number: int) -> list[dict[str, Any]]:
        """The lines of a closed set."""
        first, stop = self._spans[number]
        with open(self.path, "rb") as file:
            file.seek(first)
            data = file.read(stop - first)
        return [parse_json(line) for line in data.splitlines()]

    def append(self, number: int, lines: Sequence[dict[str, Any]]) -> None:
        """Adds a set, and is back when it is on the disk."""
        assert self._handle is not None, "the journal is closed"
        if number in self._spans:
            raise DachengError("this set is in the journal already", field="set", value=number)
        texts = [json.dumps({"set": number, **plain(line)}, ensure_ascii=False) + "\n" for line in lines]
        data = "".join(texts).encode("utf-8", "backslashreplace")
        closing = json.dumps({"set": number, "closed": len(lines)}).encode() + b"\n"
        first = os.fstat(self._handle).st_size
        for part in (data, closing):
            view = memoryview(part)
            while view:
                view = view[os.write(self._handle, view) :]
        os.fsync(self._handle)
        self._spans[number] = (first, first + len(data))

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


@dataclass(slots=True)
class PreparedSet:
    """A set as it is learnt from. figures: what was measured of it. state: what the next set begins with (kl_coef).
    digest: of its file."""

    number: int
    batch: RolloutBatch
    figures: dict[str, float]
    state: dict[str, float]
    digest: str = ""


class Journal:
    """The files of a run under `folder`, which is its own until `close`: what another process was writing would look
    like what a killed one left, and be cut off. Raises Locked where another has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = OutputLock(folder)
        self._lock.__enter__()
        try:
            self._open()
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise

    def _open(self) -> None:
        folder = self.folder
        self.rollouts, self.rewards = LineJournal(folder / ROLLOUTS), LineJournal(folder / REWARDS)
        (folder / SETS).mkdir(parents=True, exist_ok=True)

    def read_rollouts(self, number: int) -> list[Rollout]:
        lines = self.rollouts.read(number)
        return [Rollout.from_dict({k: v for k, v in line.items() if k != "set"}) for line in lines]

    def write_rollouts(self, number: int, rollouts: Sequence[Rollout]) -> None:
        self.rollouts.append(number, [rollout.to_dict() for rollout in rollouts])

    def path(self, number: int) -> Path:
        return self.folder / SETS / f"{number:08d}.safetensors"

    def load(self, number: int) -> PreparedSet | None:
        """None where it was never finished. Raises DamagedFile for a file that is not what was written."""
        path = self.path(number)
        if not path.is_file():
            return None
        told = parse_json(read_header(path).metadata.get("set", "{}").encode())
        if not {"figures", "state"} <= set(told):
            raise DamagedFile(f"{path} is no set of rollouts", field="file", value=str(path), remedy="remove it")
        found = read_tensors(path)
        tensors: dict[str, Tensor] = {name: tensor.clone() for name, tensor in found.items()}
        batch = RolloutBatch(**{f.name: tensors.get(f.name) for f in fields(RolloutBatch)})  # type: ignore[arg-type]
        return PreparedSet(number, batch, told["figures"], told["state"], sha256_file(path))

    def save(self, prepared: PreparedSet) -> PreparedSet:
        """Writes it and gives it back with its digest."""
        named = {f.name: getattr(prepared.batch, f.name) for f in fields(RolloutBatch)}
        tensors = {name: tensor.clone() for name, tensor in named.items() if tensor is not None}
        told = json.dumps(plain({"figures": prepared.figures, "state": prepared.state}), sort_keys=True)
        prepared.digest = write_tensors(self.path(prepared.number), tensors, {"set": told})
        return prepared

    def thin_out(self, first: int) -> None:
        """Removes the files of sets before `first`; their rollouts and rewards stay."""
        for path in (self.folder / SETS).glob("*.safetensors"):
            if path.stem.isdecimal() and int(path.stem) < first:
                path.unlink()

    def close(self) -> None:
        self.rollouts.close()
        self.rewards.close()
        self._lock.__exit__(None, None, None)
