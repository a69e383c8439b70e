"""What a stage is given beside its configuration and inputs, and how stages are found by their `do:`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dacheng.errors import UsageError
from dacheng.ledger import Entry, Ledger
from dacheng.recipes import nearest, resolve_object
from dacheng.records import Artifact

if TYPE_CHECKING:
    from dacheng.machine import Machine

STAGES: dict[str, str] = {
    "measure": "dacheng.stages.measure",
    "data": "dacheng.stages.data",
    "tokenizer": "dacheng.stages.tokenizer",
    "tokenize": "dacheng.stages.tokenize",
    "plan": "dacheng.stages.plan",
    "train": "dacheng.stages.train",
    "adapt": "dacheng.stages.adapt",
    "sft": "dacheng.stages.sft",
    "align": "dacheng.stages.align",
    "prefer": "dacheng.stages.prefer",
    "reward": "dacheng.stages.reward",
    "reinforce": "dacheng.stages.reinforce",
    "quantize": "dacheng.stages.quantize",
    "prune": "dacheng.stages.prune",
    "merge": "dacheng.stages.merge",
    "distil": "dacheng.stages.distil",
    "classify": "dacheng.stages.classify",
    "eval": "dacheng.stages.eval",
    "sample": "dacheng.stages.sample",
    "report": "dacheng.stages.report",
}
ANY_INPUTS: Mapping[str, Input] = {}
"""For INPUTS of a stage that takes the artifacts of all stages it is given, under their stages' names."""


@dataclass(frozen=True, slots=True)
class Input:
    """One artifact that a stage takes: of which kind, and whether it can do without."""

    kind: str
    required: bool = True


class Task(Protocol):
    """One bar of progress. `completed` is absolute, in the task's unit; `text` is shown beside it."""

    def update(
        self, completed: float | None = None, *, total: float | None = None, text: str | None = None
    ) -> None: ...


class Reporter(Protocol):
    """Where a stage says what it is doing. Never stdout, which belongs to results."""

    def note(self, text: str) -> None:
        """One line that stays."""
        ...

    def task(self, description: str, total: float | None = None, unit: str = "") -> AbstractContextManager[Task]:
        """Progress with speed and time left, for anything over a second. unit: "B" for bytes, "" for plain counts."""
        ...


class Stage(Protocol):
    """A stage module; see dacheng.stages."""

    VERSION: int
    KIND: str
    INPUTS: Mapping[str, Input]
    Config: type

    def run(self, config: Any, inputs: dict[str, Artifact], out: Path, context: StageContext) -> Artifact: ...


@dataclass(slots=True)
class StageContext:
    """What a stage may use: `entry` is its open ledger entry (add tokens, flops, drops), `life_dir` and `life` the
    directory and the resolved recipe of the life it is part of, `render_report` turns a life into a page."""

    name: str
    ledger: Ledger
    entry: Entry
    reporter: Reporter
    life_dir: Path
    life: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    render_report: Callable[..., Path] | None = None

    def recipe(self, seed: int) -> dict[str, Any]:
        """What the provenance of a model says of the stage that made it."""
        return {"life": self.life, "stage": self.name, "fingerprint": self.fingerprint, "seed": seed}

    def machine(self) -> Machine:
        """This machine, measured once (under 3 s) and cached."""
        from dacheng.machine import measure

        return measure()


class SilentTask:
    def update(self, completed: float | None = None, *, total: float | None = None, text: str | None = None) -> None:
        pass


class SilentReporter:
    """Says nothing: for tests and for callers with a face of their own. `notes` keeps what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def task(self, description: str, total: float | None = None, unit: str = "") -> Iterator[SilentTask]:
        yield SilentTask()


def find_stage(do: str, field: str = "do") -> Stage:
    """The stage that `do` names: one of STAGES, or "my_package.module:MyStage". UsageError for an unknown name."""
    if ":" in do:
        stage = resolve_object(do, field)
    elif do in STAGES:
        stage = importlib.import_module(STAGES[do])
    else:
        near = nearest(do, list(STAGES))
        known = f"known: {', '.join(STAGES)}"
        remedy = f"did you mean {near}? ({known})" if near else f"{known}, or my_package.module:MyStage"
        raise UsageError("there is no such stage", field=field, value=do, remedy=remedy)
    missing = [name for name in ("VERSION", "KIND", "INPUTS", "Config", "run") if not hasattr(stage, name)]
    if missing:
        remedy = "a stage has VERSION, KIND, INPUTS, Config and run: see dacheng.stages"
        raise UsageError(f"this is no stage: it lacks {', '.join(missing)}", field=field, value=do, remedy=remedy)
    return stage
