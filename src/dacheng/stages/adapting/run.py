"""The order of a run: read, question, answer as the model is, calibrate, train, answer again, judge.

Each step looks first at what an earlier attempt has left: after `kill -9` at any point the same command goes on, and
nothing that was paid for is done twice.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError, UsageError
from dacheng.evaluate.answers import Scores, summarise
from dacheng.formats.json_files import read_json, write_json
from dacheng.ledger import Ledger
from dacheng.stages.adapting.events import FILE_NAME, Journal, read_events
from dacheng.stages.adapting.parts import AskedQuestion, Parts
from dacheng.stages.adapting.plan import Plan, make_plan
from dacheng.stages.adapting.state import RunState, replay
from dacheng.stages.adapting.training import Training
from dacheng.stages.adapting.verdict import judge
from dacheng.train.lock import OutputLock

RECIPE, RESULT, LEDGER, PLAN, REPORT = "recipe.json", "result.json", "ledger.jsonl", "plan.json", "report.html"
PROBES = 4  # fixed questions that are answered again and again while the model trains
ADAPTED_COST = 1.4  # of an answer with the adapter, in answers without
MADE = ("questions", "exam", "training", "adapter", "gate.json", PLAN, RESULT, REPORT)  # of the documents as they were


@dataclass(frozen=True, slots=True)
class Recipe:
    """What was asked for. source: a folder, or "stdlib". model: as the user named it; None: none, all is quoted."""

    source: str
    model: str | None
    minutes: float = 6.0
    seed: int = 0


class Run:
    """One run over the directory `out`. Inside `with`, nobody else writes there; `ask`, `pull_plug` and `state` may be
    called from other threads."""

    def __init__(self, recipe: Recipe, out: Path, parts: Parts, *, command: str = "") -> None:
        """command: the line that goes on with this run, for whoever interrupts it."""
        self.recipe, self.out, self.parts, self.command = recipe, out, parts, command
        self._lock = OutputLock(out)
        self._training: Training | None = None
        self._began = time.monotonic()
        self._answering = threading.Lock()
        self.journal: Journal
        self.splits: Mapping[str, Sequence[AskedQuestion]] = {}
        self.can_ask = False

    def __enter__(self) -> Run:
        """Raises Locked where another process runs here, UsageError where another run's results are."""
        self._lock.__enter__()
        try:
            self._check_recipe()
            self.journal = Journal(self.out / FILE_NAME)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        self.ledger = Ledger(self.out / LEDGER)
        return self

    def __exit__(self, *error: Any) -> None:
        self.can_ask = False
        self.journal.close()
        self._lock.__exit__(None, None, None)

    @property
    def events_path(self) -> Path:
        return self.out / FILE_NAME

    def state(self) -> RunState:
        return replay(read_events(self.events_path)[0])

    # --- the order ----------------------------------------------------------------------------------------------------
    def carry_out(self) -> dict[str, Any]:
        """Everything up to the verdict; returns what result.json holds. What it raises is in the journal too."""
        before = self.state()
        self.journal.write("started", **asdict(self.recipe))
        try:
            self._read()
            self._questions()
            answer_s = self._before(before)
            self._gate()
            plan = self._plan(answer_s)
            if plan.steps:
                self._train(plan, before)
            result = self._after(plan)
        except BaseException as error:
            problem = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
            if isinstance(error, DachengError):
                problem = error.problem
            remedy = getattr(error, "remedy", None)
            self.journal.write(
                "failed", problem=problem, remedy=remedy or (self.command and f"go on with: {self.command}")
            )
            raise
        return result

    def ready(self, url: str | None = None, served: str | None = None) -> None:
        """Says that questions may be asked from now on, at `url`. served: what clients there call the model."""
        self.journal.write("ready", url=url, served=served)

    def _read(self) -> None:
        with self.ledger.measure("read"):
            self.journal.write("reading", files=0, passages=0, bytes=0, drops={}, seconds=0.0, done=False)
            last = time.monotonic()

            def progress(values: Mapping[str, Any]) -> None:
                nonlocal last
                if time.monotonic() - last > 0.3:
                    last = time.monotonic()
                    self.journal.write("reading", **values, done=False)

            found = self.parts.read(progress)
            self.journal.write("reading", **found, done=True)
        for note in self.parts.notes:
            self.journal.write("note", text=note)
        self._check_documents()
        self.can_ask = True  # by retrieval alone, as long as there is no gate

    def _questions(self) -> None:
        with self.ledger.measure("questions"):
            self.splits = self.parts.make_questions(self.recipe.seed)
        self.journal.write("questions", **{name: len(found) for name, found in self.splits.items()})

    def _probes(self) -> list[AskedQuestion]:
        """The fixed questions: the hand-written ones first, one of them not in the documents where there is one."""
        found = [*self.splits.get("hand", ()), *self.splits["exam"]]
        answerable = [question for question in found if getattr(question, "answers", ())]
        others = [question for question in found if not getattr(question, "answers", ())]
        every = max(1, len(answerable) // max(1, PROBES - 1))
        return [*answerable[::every][: PROBES - 1], *others[:1]][:PROBES]

    def _before(self, earlier: RunState) -> float:
        """The fixed questions as the model is. Returns seconds for one answer with sources."""
        known = {
            (question, given.get("mode")): given
            for question, answers in earlier.probes.items()
            for given in answers
            if given.get("step") == 0
        }
        took: list[float] = []
        with self.ledger.measure("before"):
            for mode in ("bare", "sources", "quote") if self.parts.writes else ("quote",):
                for question in self._probes():
                    given = known.get((question.question, mode))
                    if given is None:
                        began = time.perf_counter()
                        shown = self.parts.show(self.parts.answer(question.question, mode))
                        given = {"seconds": time.perf_counter() - began, **_probe_of(shown)}
                        self.journal.write("probe", step=0, mode=mode, question=question.question, **given)
                    if mode == "sources":
                        took.append(float(given.get("seconds") or 0.0))
        return sum(took) / len(took) if took else 0.05

    def _gate(self) -> None:
        with self.ledger.measure("gate"):
            self.journal.write("gate", **self.parts.fit_gate(self.recipe.seed))

    def _plan(self, answer_s: float) -> Plan:
        path = self.out / PLAN
        if path.exists():
            plan = Plan(**read_json(path))
        else:
            spent = time.monotonic() - self._began
            trains = self.parts.writes and self.parts.trains
            rows = 2 + ADAPTED_COST * trains if self.parts.writes else 1  # in answers of the model with sources
            plan = make_plan(
                self.recipe.minutes, spent, self.parts.speeds(answer_s), exam_available=len(self._exam_pool()),
                rows=rows, batch_tokens=self.parts.batch_tokens, train=trains,
            )  # fmt: skip
            write_json(path, plan.to_dict())
        self.journal.write("plan", **plan.to_dict())
        return plan

    def _exam_pool(self) -> list[AskedQuestion]:
        """Hand-written ones first. Any beginning of each part is a fair draw from it."""
        parts = [list(self.splits.get("hand", ())), list(self.splits["exam"])]
        for part in parts:
            random.Random(self.recipe.seed).shuffle(part)
        return [question for part in parts for question in part]

    def _rows(self) -> list[str]:
        trained = ["adapted"] if self.parts.trains else []
        return ["bare", "sources", *trained, "quote"] if self.parts.writes else ["quote"]

    def _train(self, plan: Plan, earlier: RunState) -> None:
        adapter = self.out / "adapter"
        if not (adapter / "adapter_config.json").exists():
            with self.ledger.measure("train") as entry:
                training = Training(
                    self.parts.trainer(plan, self.recipe.seed), self.journal, entry, probe=self._probe_now,
                    probe_every_s=min(60.0, max(2.0, plan.train_seconds / 4)),
                    snapshot=self.out / "training" / "snapshot", save_every=self.parts.save_every,
                    journalled=max(earlier.losses, default=0),
                )  # fmt: skip
                self._training = training
                try:
                    training.run()
                finally:
                    self._training = None
        self.parts.use_adapter(adapter)

    def _probe_now(self, step: int) -> None:
        self.parts.use_adapter(self.out / "training" / "snapshot")
        for question in self._probes():
            shown = self.parts.show(self.parts.answer(question.question, "adapted"))
            self.journal.write("probe", step=step, mode="adapted", question=question.question, **_probe_of(shown))

    def _after(self, plan: Plan) -> dict[str, Any]:
        pool, rows = self._exam_pool()[: plan.exam_questions], dict[str, dict[str, Scores]]()
        for mode in self._rows():
            with self.ledger.measure(f"exam/{mode}") as entry:
                found = self.parts.exam(pool, mode, lambda done, total, row=mode: self._tell_progress(row, done, total))  # type: ignore[misc]
                cost = entry.line()
            rows |= found
            for row, scores in found.items():
                seconds = sum(one.seconds for one in scores.values())
                money = sum(cost["money"].values())
                self.journal.write("exam_row", row=row, scores=self._summary(scores), seconds=seconds,
                                   questions=len(scores), joules=cost["joules"], money=money)  # fmt: skip
        return self._judge(plan, rows)

    def _tell_progress(self, row: str, done: int, total: int) -> None:
        self.journal.write("exam_progress", row=row, done=done, total=total)

    def _summary(self, scores: Mapping[str, Scores]) -> dict[str, list[float]]:
        return {name: list(three) for name, three in summarise(list(scores.values()), seed=self.recipe.seed).items()}

    def _judge(self, plan: Plan, rows: Mapping[str, Mapping[str, Scores]]) -> dict[str, Any]:
        verdict = judge(rows, self.recipe.seed)
        hand, figures = {question.id for question in self.splits.get("hand", ())}, {}
        for row, scores in rows.items():
            groups = {"all": scores, "hand": {k: v for k, v in scores.items() if k in hand},
                      "drawn": {k: v for k, v in scores.items() if k not in hand}}  # fmt: skip
            figures[row] = {name: self._summary(group) for name, group in groups.items() if group}
        result = {
            "recipe": asdict(self.recipe), "fingerprint": self.parts.fingerprint, "plan": plan.to_dict(),
            "rows": figures, "questions": len(next(iter(rows.values()))), "verdict": verdict.to_dict(),
            "totals": self.ledger.totals(),
            "adapter": str(self.out / "adapter") if "adapted" in rows else None,
        }  # fmt: skip
        write_json(self.out / RESULT, result)
        self.journal.write("verdict", **verdict.to_dict())
        return result

    # --- while it runs ------------------------------------------------------------------------------------------------
    def ask(self, question: str, mode: str) -> dict[str, Any]:
        """One answer, from any thread. A trainer that is at work stands still meanwhile, and the journal says so."""
        if not self.can_ask:
            raise DachengError("the documents are still being read", field="state", remedy="ask again in a moment")
        training = self._training
        with self._answering:
            if training is not None and training.running and mode != "quote":
                with training.pausing("question"):
                    return self.parts.show(self.parts.answer(question, mode))
            return self.parts.show(self.parts.answer(question, mode))

    def best_mode(self) -> str:
        """How to answer someone who does not choose: as the exam found most helpful; until then by quoting."""
        path = self.out / RESULT
        winner = read_json(path)["verdict"]["winner"] if path.exists() else "quote"
        return winner if winner in ("adapted", "sources") else "quote"

    def pull_plug(self) -> bool:
        """Kills the trainer, as pulling the plug would. False where none is at work."""
        training = self._training
        return training is not None and training.pull_plug()

    # --- what is there already ----------------------------------------------------------------------------------------
    def _check_recipe(self) -> None:
        path, mine = self.out / RECIPE, asdict(self.recipe)
        if not path.exists():
            others = [name for name in os.listdir(self.out) if name != self._lock.path.name]
            if others:
                raise UsageError("this directory holds something else", field="--out", value=str(self.out),
                                 remedy="name a new one")  # fmt: skip
            write_json(path, {**mine, "fingerprint": ""})
            return
        there = read_json(path)
        differing = [name for name, value in mine.items() if there.get(name) != value]
        if differing:
            said = ", ".join(f"{name} {there.get(name)!r}" for name in differing)
            raise UsageError(f"this directory is that of another run, with {said}", field="--out", value=str(self.out),
                             remedy="name another --out, or give the same options to go on")  # fmt: skip

    def _check_documents(self) -> None:
        """What was made of documents that have changed since is set aside, not lost."""
        path = self.out / RECIPE
        there = read_json(path)
        if there.get("fingerprint") not in ("", self.parts.fingerprint):
            number = 1
            while (self.out / f"earlier-{number}").exists():
                number += 1
            for name in MADE:
                if (self.out / name).exists():
                    (self.out / f"earlier-{number}").mkdir(exist_ok=True)
                    shutil.move(self.out / name, self.out / f"earlier-{number}" / name)
            self.journal.write("note", text=f"the documents have changed: what was made of them is in earlier-{number}")
        write_json(path, {**there, "fingerprint": self.parts.fingerprint})


def _probe_of(shown: Mapping[str, Any]) -> dict[str, Any]:
    return {"answer": shown["text"], "citations": shown["citations"], "abstained": shown["abstained"]}
