"""do: data. A source -> cleaned, deduplicated documents, split into train and valid by their content's hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dacheng.data.prepare import PrepareConfig
from dacheng.records import Artifact, Drops
from dacheng.stages.base import Input, StageContext

VERSION = 1
KIND = "documents"
INPUTS: dict[str, Input] = {}
Config = PrepareConfig


def externals(config: PrepareConfig) -> dict[str, Any]:
    """Every byte that would be read: a changed file is prepared again."""
    from dacheng.data.sources import fingerprint_source

    return {"source": fingerprint_source(config.source)}


def run(config: PrepareConfig, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Leaves documents/: JSON lines by split and a manifest that counts what was kept, dropped and altered, and why."""
    from dacheng.data.prepare import prepare

    drops = Drops()
    with context.reporter.task("reading and cleaning", unit="B") as task:
        store = prepare(config, out / "documents", drops, lambda done, total: task.update(done, total=total))
    context.entry.add(drops=drops)
    lost = sum(drops.dropped.values())
    context.reporter.note(f"{drops.kept:,} documents kept ({drops.kept_bytes:,} bytes), {lost:,} dropped")
    splits = {split: {"documents": store.documents(split), "bytes": store.bytes(split)} for split in store.splits}
    return Artifact(
        KIND, out / "documents", metrics={"drops": drops.to_dict(), "fingerprint": store.fingerprint, **splits}
    )
