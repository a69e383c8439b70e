"""A run in the terminal: drawn from its events, like the page and the report."""

from __future__ import annotations

import sys
import time
from typing import Any

from dacheng.cli.console import amount, duration
from dacheng.stages.adapting.events import Event
from dacheng.stages.adapting.state import ROWS, RunState

EVERY_S = 2.0  # between two lines of one stage
NAMES = {"bare": "bare model", "sources": "model + sources", "adapted": "adapted", "quote": "quote only",
         "sources+gate": "model + sources + gate"}  # fmt: skip
MEASURES = (("all_right", "helpful"), ("right", "right"), ("cited_right", "cited right"),
            ("abstained", "says when not there"), ("invented", "invented names"))  # fmt: skip


class Face:
    """A listener of a journal. Lines go to stderr; quiet: only what goes wrong."""

    def __init__(self, quiet: bool = False, stream: Any = None) -> None:
        self.state, self.quiet = RunState(), quiet
        self._stream = stream or sys.stderr
        self._last = 0.0
        self._live = bool(getattr(self._stream, "isatty", lambda: False)())
        self._open = False  # a line that is written over

    def __call__(self, event: Event) -> None:
        self.state.apply(event)
        show = getattr(self, f"_{event.kind}", None)
        if show is not None and not self.quiet:
            show(event)

    def _say(self, text: str) -> None:
        self._end_line()
        print(text, file=self._stream, flush=True)

    def _progress(self, text: str, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._last < (0.2 if self._live else EVERY_S):
            return
        self._last = now
        if self._live:
            print(f"\r\x1b[K  {text}", end="", file=self._stream, flush=True)
            self._open = True
        else:
            print(f"  {text}", file=self._stream, flush=True)

    def _end_line(self) -> None:
        if self._open:
            print(file=self._stream)
            self._open = False

    # --- by kind ------------------------------------------------------------------------------------------------------
    def _started(self, event: Event) -> None:
        again = " (going on)" if self.state.last > 1 else ""
        self._say(
            f"adapt {event.get('source')} with {event.get('model') or 'no model'}, "
            f"{event.get('minutes'):g} minutes{again}"
        )
        self._say("reading")

    def _reading(self, event: Event) -> None:
        text = f"{event.get('files')} files, {event.get('passages')} passages, {amount(event.get('bytes') or 0, 'B')}"
        if not event.get("done"):
            encoded = f", {event.get('encoded')} of {event.get('to_encode')} vectors" if event.get("to_encode") else ""
            self._progress(text + encoded)
            return
        self._progress(f"{text} in {duration(event.get('seconds') or 0.0)}", last=True)
        drops = (event.get("drops") or {}).get("dropped") or {}
        for reason, count in drops.items():
            self._say(f"  left out: {count} {reason.replace('_', ' ')}")

    def _note(self, event: Event) -> None:
        self._say(f"  note: {event.get('text')}")

    def _questions(self, event: Event) -> None:
        parts = ", ".join(
            f"{event.get(name)} {name}" for name in ("train", "calibration", "exam", "hand") if event.get(name)
        )
        self._say(f"questions: {parts}")

    def _probe(self, event: Event) -> None:
        when = "before" if not event.get("step") else f"step {event.get('step')}"
        said = "(not in the documents)" if event.get("abstained") else event.get("answer")
        self._say(f"  {when}, {NAMES[event.get('mode')]}: {event.get('question')}\n    {_short(str(said))}")

    def _gate(self, event: Event) -> None:
        auroc = event.get("auroc")
        how = "not calibrated" if auroc is None else f"AUROC {auroc:.3f} on questions that the exam never sees"
        self._say(f"gate: passes from {event.get('threshold'):.2f}, {how}")

    def _plan(self, event: Event) -> None:
        train = event.get("train_seconds") or 0.0
        training = f"{duration(train)} of training, " if train else "no training, "
        self._say(f"plan: {training}{event.get('exam_questions')} questions in each row of the exam")

    def _train_step(self, event: Event) -> None:
        self._progress(
            f"training: step {event.get('step')} of {event.get('steps')}, loss {float(event.get('loss')):.3f}, "
            f"{event.get('tokens_per_s'):.0f} tokens/s, {event.get('joules'):.0f} J ({event.get('joules_kind')}), "
            f"{event.get('money'):.4f} {event.get('currency')}",
            last=event.get("step") == event.get("steps"),
        )

    def _paused(self, event: Event) -> None:
        self._progress(f"training paused: {event.get('reason')}")

    def _plug_pulled(self, event: Event) -> None:
        self._say(f"  the plug was pulled at step {event.get('step')}")

    def _restarted(self, event: Event) -> None:
        identical = event.get("bit_identical")
        compared = event.get("compared_steps")
        told = {
            None: "",
            True: f"; {compared} repeated steps are bit-identical",
            False: f"; of {compared} repeated steps some DIFFER",
        }
        self._say(f"  training goes on from step {event.get('from_step')}{told[identical]}")

    def _exam_progress(self, event: Event) -> None:
        row, done, total = NAMES.get(event.get("row"), event.get("row")), event.get("done"), event.get("total")
        self._progress(f"exam, {row}: {done} of {total}", last=done == total)

    def _verdict(self, event: Event) -> None:
        self._end_line()
        print_table(self.state, self._stream)
        for sentence in event.get("sentences") or ():
            self._say(sentence)

    def _ready(self, event: Event) -> None:
        if event.get("url"):
            self._say(f"ready: ask at {event.get('url')} (Ctrl-C ends)")

    def _failed(self, event: Event) -> None:
        self._end_line()


def print_table(state: RunState, stream: Any) -> None:
    """The exam, one row each, with intervals."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("", *(title for _, title in MEASURES), "s/answer"):
        table.add_column(title)
    for name in [*ROWS, *(row for row in state.rows if row == "sources+gate")]:
        row = state.rows.get(name)
        if row is None:
            continue
        cells = [_cell(row.scores.get(measure)) for measure, _ in MEASURES]
        seconds = row.scores.get("seconds")
        table.add_row(NAMES[name], *cells, f"{seconds[0]:.2f}" if seconds else "")
    Console(file=stream).print(table)


def _cell(score: Any) -> str:
    return "–" if not score else f"{100 * score[0]:.0f}% \\[{100 * score[1]:.0f}–{100 * score[2]:.0f}]"


def _short(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + "…"
