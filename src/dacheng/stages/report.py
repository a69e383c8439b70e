"""do: report. The life so far as one self-contained HTML page: curves, floors, samples, drops, cost, lineage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dacheng.errors import DachengError
from dacheng.records import Artifact
from dacheng.stages.base import ANY_INPUTS, StageContext

VERSION = 1
KIND = "report"
INPUTS = ANY_INPUTS


@dataclass(frozen=True, kw_only=True)
class Config:
    """file: the page's name inside the stage's folder."""

    file: str = "report.html"


def run(config: Config, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact:
    """Raises DachengError outside a life: only a life knows its lineage."""
    if context.render_report is None:
        raise DachengError("a report is part of a life", field="do", value="report", remedy="dacheng run LIFE.yaml")
    path = context.render_report(
        out / config.file,
        life=context.life,
        artifacts=inputs,
        totals=context.ledger.totals(),
    )
    return Artifact(KIND, path, metrics={"bytes": path.stat().st_size})
