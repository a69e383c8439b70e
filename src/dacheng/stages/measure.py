"""do: measure. This machine, once: processor, threads, memory, and the matmul speed that budgets and MFU count on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dacheng.records import Artifact
from dacheng.stages.base import Input, StageContext

VERSION = 1
KIND = "machine"
INPUTS: dict[str, Input] = {}


@dataclass(frozen=True, kw_only=True)
class Config:
    """refresh: measure again even when the cache has this machine (the better of both stands: a busy moment must not
    shrink every later plan). threads: for one operator; None leaves torch's setting."""

    refresh: bool = True
    threads: int | None = None


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves machine.json. A life keeps its measurement: it is not taken again when the life moves elsewhere."""
    from dacheng.formats.json_files import write_json
    from dacheng.machine import measure, set_threads

    if config.threads is not None:
        set_threads(config.threads)
    machine = measure(refresh=config.refresh)
    path = out / "machine.json"
    write_json(path, machine.to_dict())
    return Artifact(KIND, path, metrics=machine.to_dict())
