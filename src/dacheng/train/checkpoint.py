"""Checkpoints on disk: out/checkpoints/step-00000200/{model,optimizer}.safetensors, state.json and manifest.json."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.atomic import replacing_directory, sync_directory
from dacheng.formats.json_files import read_json, write_json
from dacheng.formats.safetensors_io import read_tensors, sha256_file, write_tensors
from dacheng.train import manifest

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_NAME = re.compile(r"step-(\d{8,})")
_MARGIN_BYTES = 1 << 20  # headers, JSON and the file system's own blocks


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. step: finished steps. state: what state.json holds, the trainer's own plain data."""

    path: Path
    step: int
    state: dict[str, Any]
    environment: dict[str, Any]

    def model_tensors(self) -> dict[str, Tensor]:
        """By name; the names of tied weights share one tensor. Views of the file: copy what must outlive it."""
        return self._read(MODEL, "model")

    def optimizer_tensors(self) -> dict[str, Tensor]:
        return self._read(OPTIMIZER, "optimizer")

    def _read(self, file: str, kind: str) -> dict[str, Tensor]:
        tensors = read_tensors(self.path / file)
        return {**tensors, **{alias: tensors[name] for alias, name in self.state["aliases"][kind].items()}}


class CheckpointStore:
    """Writes, lists, verifies and thins out the checkpoints of one output directory.

    keep_last: the newest that stay (at least 1). keep_every: steps whose multiples stay besides (None: none do).
    """

    def __init__(self, out: Path, keep_last: int = 2, keep_every: int | None = None) -> None:
        self.folder = out / "checkpoints"
        self.keep_last, self.keep_every = max(1, keep_last), keep_every

    def steps(self) -> list[int]:
        """Of the complete checkpoints, ascending; whether they are intact only `latest` and `load` find out."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(
        self,
        step: int,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: Mapping[str, Any],
        environment: Mapping[str, Any],
    ) -> Path:
        """Writes the checkpoint of `step` beside its place, syncs it, renames it there, then applies the retention.

        Raises DachengError when the disk is too full before or while writing: what was there stays as it was.
        """
        (model, model_aliases), (optimizer, optimizer_aliases) = _untied(model), _untied(optimizer)
        self.require_space(step, sum(t.numel() * t.element_size() for t in [*model.values(), *optimizer.values()]))
        state = {**state, "aliases": {"model": model_aliases, "optimizer": optimizer_aliases}}
        try:
            with replacing_directory(self.path(step)) as staging:
                digests = {
                    MODEL: write_tensors(staging / MODEL, model, {"format": "pt"}),
                    OPTIMIZER: write_tensors(staging / OPTIMIZER, optimizer, {"format": "pt"}),
                }
                write_json(staging / STATE, state)
                digests[STATE] = sha256_file(staging / STATE)
                manifest.write(staging, digests, step=step, environment=environment)
        except OSError as error:  # a full disk or a lost mount in the middle; the staging directory is gone already
            raise DachengError(
                f"the checkpoint of step {step} could not be written: {error}",
                field=str(self.folder),
                remedy="the checkpoint before it is intact: make room, then run the same command again",
            ) from error
        self._retain()
        return self.path(step)

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest intact checkpoint, and a warning for each damaged one that is newer.

        (None, []) when there is none at all. Raises DamagedFile when there are some and none is intact.
        """
        warnings: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self.load(step), warnings
            except DamagedFile as error:
                warnings.append(f"{error.problem}; the checkpoint before it is used")
        if warnings:
            raise DamagedFile(
                f"no checkpoint is intact ({len(warnings)} damaged)",
                field=str(self.folder),
                value=warnings[0],
                remedy="remove that folder to begin again",
            )
        return None, warnings

    def load(self, step: int, verify: bool = True) -> Checkpoint:
        """Raises DamagedFile when it is not as it was written. verify=False trusts another rank to have looked."""
        path = self.path(step)
        found = manifest.verify(path) if verify else read_json(path / manifest.NAME)
        return Checkpoint(path, step, read_json(path / STATE), found["environment"])

    def set_aside_after(self, step: int) -> list[Path]:
        """Renames the checkpoints past `step` (damaged ones, now that an older one is resumed) to step-N.damaged, where
        neither retention nor a resume counts them. Returns the new paths."""
        moved = []
        for newer in self.steps():
            if newer > step:
                aside = self.path(newer).with_suffix(".damaged")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(self.path(newer), aside)
                moved.append(aside)
        if moved:
            sync_directory(self.folder)
        return moved

    def clean(self) -> None:
        """Removes what interrupted writers left. Call it with the output locked."""
        if self.folder.is_dir():
            for path in [*self.folder.glob(".step-*.saving-*"), *self.folder.glob(".step-*.removed")]:
                shutil.rmtree(path, ignore_errors=True)

    def _retain(self) -> None:
        for step in self.steps()[: -self.keep_last]:
            if not (self.keep_every and step % self.keep_every == 0):
                # Renamed first: a half-removed checkpoint must not look like a damaged one.
                trash = self.folder / f".{self.path(step).name}.removed"
                shutil.rmtree(trash, ignore_errors=True)
                os.replace(self.path(step), trash)
                shutil.rmtree(trash, ignore_errors=True)

    def require_space(self, step: int, nbytes: int) -> None:
        """Raises DachengError naming both figures when a checkpoint of `nbytes` of tensors does not fit on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        needed, free = nbytes + _MARGIN_BYTES, shutil.disk_usage(self.folder).free
        if free < needed:
            raise DachengError(
                f"the checkpoint of step {step} needs {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free",
                field=str(self.folder),
                value=free,
                remedy="the checkpoint before it is intact: make room, then run the same command again",
            )


def _untied(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and alias -> name for the others. Another view of a tensor's memory becomes a copy."""
    unique: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        key = (storage, tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        if storage and key in seen:
            aliases[name] = seen[key]
            continue
        unique[name] = tensor.detach().clone() if storage in storages else tensor.detach()
        seen[key] = name
        storages.add(storage)
    return unique, aliases
