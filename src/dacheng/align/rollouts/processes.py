"""Workers in processes of their own: weights go out over gloo, asks and rollouts over pipes. One that dies is replaced,
and its share redone."""

from __future__ import annotations

import json
import os
import secrets
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dacheng.align.rollouts.ask import Ask, Sampling, shares
from dacheng.align.rollouts.child import SETUP, TOKENIZER
from dacheng.align.rollouts.inline import check_vocabulary
from dacheng.align.rollouts.weights import TRAINER, WeightLink, plain_tensors
from dacheng.align.rollouts.worker import Health
from dacheng.data.rollouts import Rollout
from dacheng.errors import DachengError, UsageError
from dacheng.formats.json_files import write_json
from dacheng.models.decoder import Decoder

MOST_RESTARTS = 3  # of one worker without an answer in between
ANSWER_S = 900.0  # after which a worker that says nothing is taken for dead
LOG = "worker.log"


class WorkerDied(DachengError):
    """A process that writes rollouts is gone, or says nothing."""


class ProcessWorkers:
    """`count` processes, each with the whole model. The asks are shared out by group (see ask.shares), so the rollouts
    of a set do not depend on who lived through it.

    folder: for their setup and their logs. The weights that were last given are kept here, for a process that has to be
    started anew while the trainer has gone on. Raises UsageError for a tokenizer that cannot be saved or does not fit.
    """

    def __init__(
        self, model: Decoder, tokenizer: Any, sampling: Sampling, count: int, folder: Path, *,
        answer_s: float = ANSWER_S,
    ) -> None:  # fmt: skip
        check_vocabulary(model, tokenizer)
        if count < 1:
            raise UsageError("at least one process writes", field="workers", value=count, remedy="1")
        self.folder, self.answer_s = Path(folder), answer_s
        self.folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(self.folder / TOKENIZER)
        threads = max(1, torch.get_num_threads() // count)
        setup = {"traits": model.traits.to_dict(), "sampling": asdict(sampling), "threads": threads}
        write_json(self.folder / SETUP, setup)
        self._weights: list[Tensor] = []
        self.version = -1
        self.restarts = 0
        self._asked: list[list[Ask]] = []
        self._order: list[str] = []
        self._tokens, self._seconds, self._started_at = 0, 0.0, 0.0
        self._children: list[Child | None] = [None] * count

    def update_weights(self, model: Any, version: int) -> None:
        """Sends them to every process; one that does not take them is replaced."""
        if version == self.version:
            return
        self._weights, self.version = plain_tensors(model), version
        for index in range(len(self._children)):
            self._attempt(index, lambda child: child.take_weights(self._weights, self.version))

    def start(self, asks: Sequence[Ask]) -> None:
        self._started_at = time.perf_counter()
        self._asked, self._order = shares(asks, len(self._children)), [ask.id for ask in asks]
        for index, share in enumerate(self._asked):
            if share:
                self._attempt(index, lambda child, share=share: child.ask(share))

    def collect(self) -> list[Rollout]:
        """Waits for all. Raises DachengError where a process dies again and again, and what went wrong in one."""
        found: dict[str, Rollout] = {}
        for index, share in enumerate(self._asked):
            if share:
                found |= {rollout.id: rollout for rollout in self._answers(index, share)}
        self._asked = []
        self._seconds += time.perf_counter() - self._started_at
        rollouts = [found[ask_id] for ask_id in self._order]
        self._tokens += sum(rollout.own_tokens for rollout in rollouts)
        return rollouts

    def generate(self, asks: Sequence[Ask]) -> list[Rollout]:
        self.start(asks)
        return self.collect()

    def health(self) -> Health:
        alive = sum(child is not None and child.alive for child in self._children)
        return Health(alive, self.restarts, self.version, self._tokens, self._seconds)

    @property
    def pids(self) -> list[int]:
        """Of the processes that there are."""
        return [child.process.pid for child in self._children if child is not None]

    def close(self) -> None:
        for child in self._children:
            if child is not None:
                child.kill()
        self._children = [None] * len(self._children)

    # --- one process --------------------------------------------------------------------------------------------------
    def _answers(self, index: int, share: list[Ask]) -> list[Rollout]:
        """What one process answers to its share, asked again where it has to be replaced."""

        def attempt(child: Child, again: bool) -> list[Rollout]:
            if again:
                child.ask(share)
            answer = child.answer(self.answer_s)
            return [Rollout.from_dict(one) for one in answer["rollouts"]]

        return self._attempt(index, attempt, tells=True)  # type: ignore[no-any-return]

    def _attempt(self, index: int, work: Any, tells: bool = False) -> Any:
        """Does `work` with a living process that has the weights. tells: work(child, whether it is a new one)."""
        for number in range(MOST_RESTARTS + 1):
            try:
                child, is_new = self._living(index)
                return work(child, is_new or number > 0) if tells else work(child)
            except WorkerDied as error:
                self.restarts += 1
                gone = self._children[index]
                if gone is not None:
                    gone.kill()
                self._children[index] = None
                last = error
        raise DachengError(
            f"worker {index} died {MOST_RESTARTS + 1} times in a row: {last.problem}",
            field=str(self.folder / f"{index}-{LOG}"), remedy="read its log; fewer workers, or a smaller max_batch",
        )  # fmt: skip

    def _living(self, index: int) -> tuple[Child, bool]:
        found = self._children[index]
        if found is not None:
            if not found.alive:
                raise WorkerDied("the process has ended", field="worker", value=index)
            return found, False
        child = self._children[index] = Child(self.folder, index)
        if self._weights:
            child.take_weights(self._weights, self.version)
        return child, True


class Child:
    """One process, its pipes and its link."""

    def __init__(self, folder: Path, index: int) -> None:
        self._links = folder / f"link-{os.getpid()}-{index}-{secrets.token_hex(4)}"
        self._links.mkdir()
        reading, self._commands = os.pipe()
        with open(folder / f"{index}-{LOG}", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dacheng.align.rollouts.child", str(folder), str(self._links / "store"),
                 str(reading)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, pass_fds=(reading,),
            )  # fmt: skip
        os.close(reading)
        self._link: WeightLink | None = None
        self._buffer = bytearray()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def take_weights(self, tensors: list[Tensor], version: int) -> None:
        self._say({"do": "weights", "version": version})
        try:
            if self._link is None:
                self._link = WeightLink(self._links / "store", TRAINER)
            self._link.send(tensors)
        except DachengError as error:
            raise WorkerDied(error.problem, field=error.field, value=error.value) from None
        self.answer(ANSWER_S)

    def ask(self, asks: Sequence[Ask]) -> None:
        self._say({"do": "generate", "asks": [asdict(ask) for ask in asks]})

    def answer(self, seconds: float) -> dict[str, Any]:
        """Its next line. Raises WorkerDied when there comes none, and the DachengError that it reports."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise WorkerDied(
                        f"the process has said nothing for {seconds:.0f} s", field="pid", value=self.process.pid
                    )
                data = os.read(self.process.stdout.fileno(), 1 << 16)
                if not data:
                    raise WorkerDied("the process has ended", field="pid", value=self.process.pid)
                self._buffer += data
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            told = answer["error"]
            raise DachengError(told["problem"], field=told["field"], value=told["value"], remedy=told["remedy"])
        return answer

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        if self._commands >= 0:
            os.close(self._commands)
            self._commands = -1
        self._link = None
        shutil.rmtree(self._links, ignore_errors=True)

    def _say(self, command: dict[str, Any]) -> None:
        data = memoryview((json.dumps(command) + "\n").encode())
        try:
            while data:
                data = data[os.write(self._commands, data) :]
        except BrokenPipeError:
            raise WorkerDied("the process has ended", field="pid", value=self.process.pid) from None
