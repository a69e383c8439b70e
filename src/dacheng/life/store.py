"""The directory of a life: who may write there, each stage's folder and its result, and the results that were replaced.

out/life.yaml                    the resolved recipe
out/ledger.jsonl                 what it cost
out/stages/<stage>/stage.json    what is being made there, under which fingerprint: what an interrupted run goes on from
out/stages/<stage>/artifact.json written last: the stage is done
out/replaced/<stage>-<hash>/     the result before, kept until the next one replaces it, put back if it is wanted again
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.json_files import read_json, write_json
from dacheng.life.graph import Node
from dacheng.records import Artifact

SCHEMA = 1
STATE, ARTIFACT = "stage.json", "artifact.json"


class Store:
    """The stages' folders under `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def folder(self, name: str) -> Path:
        return self.out / "stages" / name

    def cached(self, name: str, fingerprint: str) -> Artifact | None:
        """The finished result under this fingerprint, if there is one; put back from `replaced` where it was there."""
        found = read_artifact(self.folder(name), fingerprint)
        if found is not None:
            return found
        kept = self._kept(name, fingerprint)
        if kept is None or read_artifact(kept, fingerprint) is None:
            return None
        self._swap(name, kept)
        return read_artifact(self.folder(name), fingerprint)

    def begin(self, node: Node, fingerprint: str, parents: dict[str, str]) -> tuple[Path, str | None]:
        """The folder to work in, and a note on what became of the one before. What an interrupted run under the same
        fingerprint left is still there; anything else was moved aside."""
        folder, note = self.folder(node.name), None
        if folder.exists() and _fingerprint(folder) != fingerprint:
            kept = self._kept(node.name, fingerprint)
            note = f"the result before is kept in {self._swap(node.name, kept)}"
        folder.mkdir(parents=True, exist_ok=True)
        state = {"name": node.name, "fingerprint": fingerprint, "parents": parents, "recipe": node.resolved()}
        write_json(folder / STATE, {"schema": SCHEMA, "status": "running", **state})
        return folder, note

    def end(self, name: str, status: str, error: str | None = None) -> None:
        """Records how a stage that did not finish ended."""
        path = self.folder(name) / STATE
        write_json(path, {**read_json(path), "status": status, "error": error})

    def finish(self, name: str, artifact: Artifact, seconds: float) -> None:
        """Makes `artifact` the stage's result."""
        folder = self.folder(name)
        relative = Path(artifact.path).resolve().relative_to(folder.resolve())
        self.end(name, "done")
        record = {**artifact.to_dict(), "path": relative.as_posix(), "seconds": seconds, "schema": SCHEMA}
        write_json(folder / ARTIFACT, record)

    def _kept(self, name: str, fingerprint: str) -> Path | None:
        path = self.out / "replaced" / f"{name}-{fingerprint[:12]}"
        return path if path.is_dir() and _fingerprint(path) == fingerprint else None

    def _swap(self, name: str, incoming: Path | None) -> Path | None:
        """Moves the stage's folder to `replaced`, and `incoming` (or nothing) into its place. Returns where the old one
        went. Of each stage one finished and one unfinished result are kept."""
        folder, replaced = self.folder(name), self.out / "replaced"
        replaced.mkdir(parents=True, exist_ok=True)
        target = None
        if folder.exists():
            target = replaced / f"{name}-{(_fingerprint(folder) or 'unknown')[:12]}"
            if target.exists():
                shutil.rmtree(target)
            folder.rename(target)
        if incoming is not None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            incoming.rename(folder)
        if target is not None:
            finished = (target / ARTIFACT).exists()
            for old in replaced.iterdir():
                same_stage = old != target and old.name.rpartition("-")[0] == name
                if same_stage and (old / ARTIFACT).exists() == finished:
                    shutil.rmtree(old)
        return target


def read_artifact(folder: Path, fingerprint: str | None = None) -> Artifact | None:
    """The finished result in a stage's folder; None when there is none, it is damaged, or has another fingerprint."""
    try:
        record = read_json(folder / ARTIFACT)
        if record.get("schema") != SCHEMA or (fingerprint is not None and record["fingerprint"] != fingerprint):
            return None
        path = folder / record["path"]
        if not path.exists():
            return None
        fields = ("fingerprint", "metrics", "totals", "parents")
        return Artifact(record["kind"], path, **{name: record[name] for name in fields})
    except (DachengError, DamagedFile, KeyError, TypeError, OSError):
        return None


def read_state(folder: Path) -> dict[str, Any]:
    """stage.json of a stage's folder; {} when there is none or it is damaged."""
    try:
        return read_json(folder / STATE)
    except (DachengError, OSError):
        return {}


def _fingerprint(folder: Path) -> str | None:
    return read_state(folder).get("fingerprint")
