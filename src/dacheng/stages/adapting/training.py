"""A trainer in a process of its own, watched: its steps into the journal, questions asked in between, the plug pulled.

Pausing is SIGSTOP, and pulling the plug SIGKILL: nothing of the trainer can smooth it over. It goes on from its last
checkpoint and does again what came after that; the losses of those steps are compared with the first, bit by bit.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dacheng.errors import DachengError
from dacheng.stages.adapting.events import Journal

if TYPE_CHECKING:
    from dacheng.ledger import Entry

POLL_S = 0.1
SETTLE_S = 0.05  # from a signal to a process that stands still
PROBE_SHARE = 4.0  # training lasts at least so many times as long as the probe before it
MOST_RESTARTS = 5  # of a trainer that ends by itself without having finished


class LogTail(Protocol):
    def new_lines(self) -> list[dict[str, Any]]: ...


class Trainer(Protocol):
    """dacheng.adapt.process.TrainerProcess."""

    @property
    def alive(self) -> bool: ...

    @property
    def returncode(self) -> int | None: ...

    def start(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def kill(self) -> None: ...

    def restart(self) -> None: ...

    def tail(self) -> LogTail:
        """Its log from the beginning, over all starts: {"start", "from_step", "steps"} where one begins, {"start",
        "step", "loss", …} for each step."""
        ...

    def failure(self) -> DachengError | None:
        """Why it ended badly, in its own words; None where it was killed or has finished."""
        ...


class Training:
    """One training, from `run` to its end. `pull_plug` and `pausing` may be called from other threads."""

    def __init__(
        self,
        trainer: Trainer,
        journal: Journal,
        entry: Entry,
        *,
        probe: Callable[[int], None] = lambda step: None,
        probe_every_s: float = 60.0,
        snapshot: Path | None = None,
        save_every: int = 20,
        journalled: int = 0,
    ) -> None:
        """probe(step) is called every `probe_every_s` seconds of training once `snapshot` (the adapter as it is then)
        is there, with the trainer paused. save_every: steps between checkpoints. journalled: the last step that the
        journal has already."""
        self.trainer, self.journal, self.entry = trainer, journal, entry
        self._probe, self._every, self._snapshot = probe, probe_every_s, snapshot
        self._save_every, self._journalled = save_every, journalled
        self._lock = threading.RLock()
        self._pauses = 0
        self._next_probe, self._probed = 0.0, 0  # when; the step of the last one
        self._plug = False  # someone asked for it to be pulled
        self._running = False
        self._tail = trainer.tail()
        self._from_step = 0  # where the trainer's present life began
        self._first: dict[int, str] = {}  # the loss of each step the first time it was done, as it was written
        self._steps = self.step = 0
        self._again: _Again | None = None

    @property
    def running(self) -> bool:
        return self._running

    def pull_plug(self) -> bool:
        """Kills the trainer as soon as it has done a step past its checkpoint, so that there is something to compare.
        False when none is running."""
        with self._lock:
            self._plug = self._running
            return self._running

    @contextlib.contextmanager
    def pausing(self, reason: str) -> Iterator[None]:
        """Inside, the trainer stands still (where one is running)."""
        with self._lock:
            self._pauses += 1
            stood = self._pauses > 1
            if self._running and not stood:
                self.trainer.pause()
                self.journal.write("paused", reason=reason)
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                if self._running and not self._pauses:
                    self.trainer.resume()
                    self.journal.write("resumed")

    def run(self) -> None:
        """Until the adapter is there. Raises what the trainer says it failed of."""
        ended_alone, self._next_probe = 0, time.monotonic() + self._every
        self._learn_of_earlier()
        self.trainer.start()
        self._running = True
        try:
            while True:
                alive = self.trainer.alive
                self._read_log()
                if not alive and self.trainer.returncode == 0:
                    return
                if not alive:
                    ended_alone += 1
                    self._give_up_or(ended_alone)
                    self.trainer.restart()
                elif self._plug and self._comparable():
                    self._pull()
                elif self._probe_is_due():
                    began = time.monotonic()
                    with self.pausing("probe"):
                        self._probe(self.step)
                    cost = time.monotonic() - began
                    self._next_probe = time.monotonic() + max(self._every, PROBE_SHARE * cost)
                    self._probed = self.step
                time.sleep(POLL_S)
        finally:
            with self._lock:
                self._running = False
            self.trainer.kill()
            self._compared(True)

    def _probe_is_due(self) -> bool:
        """Not before the trainer has done something since the last one: they must not keep it from its work."""
        if self._snapshot is None or self.step <= self._probed or not self._snapshot.exists():
            return False
        return time.monotonic() >= self._next_probe

    def _give_up_or(self, ended_alone: int) -> None:
        failure = self.trainer.failure()
        if failure is not None or ended_alone > MOST_RESTARTS:
            raise failure or DachengError("the trainer keeps ending", field="training", value=self.step,
                                          remedy="its log says why: training/worker.log")  # fmt: skip

    def _learn_of_earlier(self) -> None:
        """What an attempt before this one has logged. Its steps go into the journal where they are not there yet."""
        for line in self._tail.new_lines():
            if "from_step" in line:
                self._steps = int(line["steps"])
            elif "step" in line:
                if int(line["step"]) not in self._first and self._journalled < int(line["step"]):
                    self._tell(line)
                self._first.setdefault(int(line["step"]), repr(line["loss"]))
                self.step = max(self.step, int(line["step"]))

    def _comparable(self) -> bool:
        """Whether the last step is past the newest checkpoint: a trainer that is killed now does it again."""
        return self.step > self._from_step and self.step % self._save_every != 0

    def _pull(self) -> None:
        with self._lock:
            self.trainer.pause()  # it might write a checkpoint between our look and the kill
            time.sleep(SETTLE_S)
            self._read_log()
            if not self._comparable():
                if not self._pauses:
                    self.trainer.resume()
                return
            self._plug = False
            self.trainer.kill()
            self.journal.write("plug_pulled", step=self.step)
            self.trainer.restart()
            if self._pauses:
                self.trainer.pause()

    def _read_log(self) -> None:
        for line in self._tail.new_lines():
            if "from_step" in line:
                self._started(line)
            elif "step" in line:
                self._stepped(line)

    def _started(self, line: dict[str, Any]) -> None:
        self._compared(True)
        self._steps = int(line["steps"])
        from_step = self._from_step = int(line["from_step"])
        if self._first:
            self._again = _Again(from_step, max(self._first))
            self._compared(False)

    def _stepped(self, line: dict[str, Any]) -> None:
        step, loss = int(line["step"]), repr(line["loss"])
        if self._again is not None:
            self._again.compare(loss, self._first.get(step))
        self._first.setdefault(step, loss)
        self.step = step
        self._tell(line)
        if self._again is not None and step >= self._again.until:
            self._compared(True)

    def _tell(self, line: dict[str, Any]) -> None:
        cost = self.entry.line()
        seconds, tokens = float(line.get("seconds") or 0.0), float(line.get("tokens") or 0.0)
        self.journal.write(
            "train_step", step=line["step"], steps=self._steps, loss=line["loss"],
            tokens_per_s=tokens / seconds if seconds > 0 else 0.0, joules=cost["joules"],
            joules_kind=cost["joules_kind"], money=sum(cost["money"].values()), currency=cost["currency"],
        )  # fmt: skip

    def _compared(self, ended: bool) -> None:
        """Tells of a restart: when it is known where it goes on from, and when all repeated steps are compared."""
        again = self._again
        if again is None:
            return
        same = again.identical if ended and again.count else None
        self.journal.write("restarted", from_step=again.from_step, bit_identical=same, compared_steps=again.count)
        if ended:
            self._again = None


class _Again:
    """Steps that are done a second time, up to `until`."""

    def __init__(self, from_step: int, until: int) -> None:
        self.from_step, self.until = from_step, until
        self.count, self.identical = 0, True

    def compare(self, loss: str, first: str | None) -> None:
        if first is not None:
            self.count += 1
            self.identical = self.identical and loss == first
