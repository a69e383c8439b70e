"""Runs a life: what is cached stays, what changed is made again, what was interrupted goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dacheng import recipes
from dacheng.errors import DachengError
from dacheng.formats.atomic import replacing_file
from dacheng.ledger import Ledger, Prices
from dacheng.life import history
from dacheng.life.costs import stage_costs
from dacheng.life.graph import Life, Node
from dacheng.life.report import render
from dacheng.life.store import Store
from dacheng.records import Artifact
from dacheng.stages.base import Reporter, SilentReporter, StageContext
from dacheng.train.lock import OutputLock

Status = Literal["cached", "run", "failed", "interrupted"]


@dataclass(slots=True)
class StageResult:
    """How one stage went. seconds: of this run; 0 when it was cached."""

    name: str
    do: str
    status: Status
    seconds: float
    artifact: Artifact | None = None

    def to_dict(self) -> dict[str, Any]:
        made = None if self.artifact is None else self.artifact.to_dict()
        return {"name": self.name, "do": self.do, "status": self.status, "seconds": self.seconds, "artifact": made}


@dataclass(slots=True)
class LifeResult:
    """Where everything is and what it cost: `totals` over the whole life, earlier runs included; `this_run` reconciles
    the ledger with the wall clock (attributed and unattributed seconds)."""

    name: str
    out: Path
    stages: list[StageResult] = field(default_factory=list)
    totals: dict[str, Any] = field(default_factory=dict)
    this_run: dict[str, float] = field(default_factory=dict)

    def artifact(self, kind: str) -> Artifact | None:
        """The last result of a kind: "model", "report"…"""
        made = [s.artifact for s in self.stages if s.artifact is not None and s.artifact.kind == kind]
        return made[-1] if made else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "out": str(self.out),
            "stages": [stage.to_dict() for stage in self.stages],
            "totals": self.totals,
            "this_run": self.this_run,
        }


def run_life(
    life: Life,
    out: Path,
    *,
    reporter: Reporter | None = None,
    prices: Prices | None = None,
    on_stage: Callable[[StageResult], None] | None = None,
) -> LifeResult:
    """Runs what is not cached of `life` in `out`, stage after stage, and returns every stage's result.

    on_stage is called after each stage, cached and failed ones too. Raises what a stage raised (its folder stays as it
    is, so the same command goes on from there) and Locked when another process writes to `out`.
    """
    reporter = reporter or SilentReporter()
    result = LifeResult(life.name, out)
    with OutputLock(out):
        began = time.time()
        ledger = Ledger(out / "ledger.jsonl", prices)
        with replacing_file(out / "life.yaml") as file:
            file.write(recipes.dump(life.resolved()).encode())
        runner = _Runner(life, Store(out), ledger, reporter)
        try:
            for node in life.nodes:
                done = runner.stage(node)
                result.stages.append(done.result)
                if on_stage is not None:
                    on_stage(done.result)
                if done.error is not None:
                    raise done.error
        finally:
            result.totals = ledger.totals()
            result.this_run = ledger.reconcile(time.time() - began, since=began)
            _remember(result, reporter)
    return result


@dataclass(slots=True)
class _Done:
    result: StageResult
    error: BaseException | None = None


class _Runner:
    def __init__(self, life: Life, store: Store, ledger: Ledger, reporter: Reporter) -> None:
        self.life, self.store, self.ledger, self.reporter = life, store, ledger, reporter
        self.made: dict[str, Artifact] = {}
        self.resolved = life.resolved()

    def stage(self, node: Node) -> _Done:
        """Makes one stage's artifact, or takes it from the cache."""
        fingerprint = self.life.keys[node.name]
        found = self.store.cached(node.name, fingerprint)
        if found is not None:
            self.made[node.name] = found
            return _Done(StageResult(node.name, node.do, "cached", 0.0, found))
        parents = {name: self.life.keys[parent] for name, parent in node.inputs.items()}
        folder, note = self.store.begin(node, fingerprint, parents)
        if note is not None:
            self.reporter.note(f"{node.name}: {note}")
        self.reporter.note(f"{node.name} …")
        began = time.perf_counter()
        try:
            artifact = self._run(node, folder, fingerprint)
            seconds = time.perf_counter() - began
            artifact.fingerprint, artifact.parents = fingerprint, parents
            artifact.totals = stage_costs(self.ledger.entries(), fingerprint)
            self.store.finish(node.name, artifact, seconds)
        except BaseException as error:
            interrupted = isinstance(error, (KeyboardInterrupt, SystemExit)) or getattr(error, "exit_code", 0) == 130
            status: Status = "interrupted" if interrupted else "failed"
            self._record_end(node.name, status, error)
            return _Done(StageResult(node.name, node.do, status, time.perf_counter() - began), error)
        self.made[node.name] = artifact
        return _Done(StageResult(node.name, node.do, "run", seconds, artifact))

    def _run(self, node: Node, folder: Path, fingerprint: str) -> Artifact:
        inputs = {name: self.made[parent] for name, parent in node.inputs.items()}
        with self.ledger.measure(node.name, do=node.do, fingerprint=fingerprint) as entry:
            context = StageContext(
                name=node.name,
                ledger=self.ledger,
                entry=entry,
                reporter=self.reporter,
                life_dir=self.store.out,
                life=self.resolved,
                fingerprint=fingerprint,
                render_report=render,
            )
            return node.stage.run(node.config, inputs, folder, context)

    def _record_end(self, name: str, status: str, error: BaseException) -> None:
        try:
            self.store.end(name, status, f"{type(error).__name__}: {error}")
        except (DachengError, OSError) as unwritten:  # a full disk must not hide what went wrong first
            error.add_note(f"and the state of the stage was not written: {unwritten}")


def _remember(result: LifeResult, reporter: Reporter) -> None:
    if not result.stages:
        return
    model = result.artifact("model")
    metrics: dict[str, Any] = {}
    for stage in result.stages:
        if stage.artifact is not None:
            metrics.update(_headline(stage.name, stage.artifact.metrics))
    last = result.stages[-1].status
    status = last if last in ("failed", "interrupted") else "done"
    try:
        history.remember(result.name, result.out, status, model=model.path if model else None, metrics=metrics)
    except OSError as error:
        reporter.note(f"this run is not in the history: {error}")


def _headline(stage: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The plain numbers of a stage; tables and texts stay with its artifact."""
    return {f"{stage}.{k}": v for k, v in metrics.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
