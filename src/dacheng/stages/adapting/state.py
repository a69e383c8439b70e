"""What a journal says so far: a pure function of its events, for all who show a run and for the run that goes on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dacheng.stages.adapting.events import Event

ROWS = ("bare", "sources", "adapted", "quote")  # of the exam, in the order of the table
STAGES = ("reading", "questions", "before", "gate", "training", "after", "ready")


@dataclass(slots=True)
class Row:
    """One row of the exam. scores: {name: [mean, low, high]}, {} until the row is done."""

    done: int = 0
    total: int = 0
    scores: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    joules: float = 0.0
    money: float = 0.0


@dataclass(slots=True)
class Plug:
    """One pull of the plug. from_step: the checkpoint that training went on from, None until it did. identical: whether
    the steps that were done twice gave the same losses to the last bit; None until they were compared."""

    step: int
    from_step: int | None = None
    identical: bool | None = None
    compared: int = 0


@dataclass(slots=True)
class RunState:
    """stage: where the run stands (one of STAGES). losses: by step; a step that was done again stands once. probes: of
    each fixed question, the answers by the step they were given at. starts: how often the run was begun or resumed."""

    last: int = 0
    began: str = ""
    ended: str = ""
    starts: int = 0
    stage: str = "reading"
    source: str = ""
    model: str = ""
    minutes: float = 0.0
    seed: int = 0
    reading: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    questions: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    paused: str | None = None
    plugs: list[Plug] = field(default_factory=list)
    verdict: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    url: str | None = None
    failed: dict[str, Any] | None = None
    unknown: dict[str, int] = field(default_factory=dict)  # kinds of events that nobody here knows, and how many

    def apply(self, event: Event) -> None:
        self.last, self.ended = event.n, event.time
        self.began = self.began or event.time
        handler = _HANDLERS.get(event.kind)
        if handler is None:
            self.unknown[event.kind] = self.unknown.get(event.kind, 0) + 1
        else:
            handler(self, event)

    def row(self, name: str) -> Row:
        return self.rows.setdefault(name, Row())


def replay(events: Iterable[Event]) -> RunState:
    """The state after these events. Any beginning of a journal has one."""
    state = RunState()
    for event in events:
        state.apply(event)
    return state


def _started(state: RunState, event: Event) -> None:
    state.starts += 1
    state.source, state.model = str(event.get("source", "")), str(event.get("model") or "")
    state.minutes, state.seed = _number(event.get("minutes")), _whole(event.get("seed"))
    state.failed, state.paused, state.url = None, None, None  # of the attempt before
    state.notes.clear()  # what still holds is said again
    state.stage = "reading"


def _reading(state: RunState, event: Event) -> None:
    state.reading, state.stage = dict(event.values), "reading"


def _questions(state: RunState, event: Event) -> None:
    state.questions, state.stage = dict(event.values), "before"


def _plan(state: RunState, event: Event) -> None:
    state.plan = dict(event.values)


def _gate(state: RunState, event: Event) -> None:
    state.gate, state.stage = dict(event.values), "training"


def _exam_progress(state: RunState, event: Event) -> None:
    row = state.row(str(event.get("row")))
    row.done, row.total = _whole(event.get("done")), _whole(event.get("total"))
    state.stage = "after"


def _exam_row(state: RunState, event: Event) -> None:
    row = state.row(str(event.get("row")))
    scores = event.get("scores")
    row.scores = dict(scores) if isinstance(scores, dict) else {}
    row.seconds, row.joules, row.money = (_number(event.get(name)) for name in ("seconds", "joules", "money"))
    row.done = row.total = max(row.total, row.done)
    state.stage = "after"


def _train_step(state: RunState, event: Event) -> None:
    state.stage = "training"
    state.training = {name: value for name, value in event.values.items() if name != "loss"}
    state.losses[_whole(event.get("step"))] = _number(event.get("loss"))
    state.paused = None


def _probe(state: RunState, event: Event) -> None:
    given = {name: value for name, value in event.values.items() if name != "question"}
    answers = state.probes.setdefault(str(event.get("question")), [])
    same = [
        k
        for k, old in enumerate(answers)
        if (old.get("step"), old.get("mode")) == (given.get("step"), given.get("mode"))
    ]
    if same:  # asked again after a resume
        answers[same[0]] = given
    else:
        answers.append(given)


def _paused(state: RunState, event: Event) -> None:
    state.paused = str(event.get("reason", ""))


def _resumed(state: RunState, event: Event) -> None:
    state.paused = None


def _plug_pulled(state: RunState, event: Event) -> None:
    state.plugs.append(Plug(_whole(event.get("step"))))


def _restarted(state: RunState, event: Event) -> None:
    if not state.plugs or state.plugs[-1].identical is not None:
        state.plugs.append(Plug(max(state.losses, default=0)))  # it was not the button that killed it
    plug, identical = state.plugs[-1], event.get("bit_identical")
    plug.from_step, plug.compared = _whole(event.get("from_step")), _whole(event.get("compared_steps"))
    plug.identical = identical if isinstance(identical, bool) else None


def _verdict(state: RunState, event: Event) -> None:
    state.verdict, state.stage = dict(event.values), "ready"


def _note(state: RunState, event: Event) -> None:
    text = str(event.get("text", ""))
    if text not in state.notes:
        state.notes.append(text)


def _ready(state: RunState, event: Event) -> None:
    state.stage, state.url = "ready", event.get("url")


def _failed(state: RunState, event: Event) -> None:
    state.failed = {name: event.get(name) for name in ("problem", "remedy")}


def _number(value: Any) -> float:
    """0 for what is none: "nan" and "inf" are written as texts."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return 0.0
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


def _whole(value: Any) -> int:
    number = _number(value)
    return int(number) if math.isfinite(number) else 0


_HANDLERS = {
    "started": _started, "reading": _reading, "questions": _questions, "plan": _plan, "gate": _gate,
    "exam_progress": _exam_progress, "exam_row": _exam_row, "train_step": _train_step, "probe": _probe,
    "paused": _paused, "resumed": _resumed, "plug_pulled": _plug_pulled, "restarted": _restarted,
    "verdict": _verdict, "note": _note, "ready": _ready, "failed": _failed,
}  # fmt: skip
