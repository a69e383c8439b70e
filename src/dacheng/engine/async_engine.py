"""The engine for a server: one thread steps, coroutines ask."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dacheng.engine.adapters import need_bank
from dacheng.engine.engine import Engine
from dacheng.engine.output import StepOutput
from dacheng.engine.readings import Embedding
from dacheng.engine.request import Request
from dacheng.engine.turns import Turns
from dacheng.errors import DachengError
from dacheng.meters import return_free_memory
from dacheng.protocols import SamplingParams

log = logging.getLogger(__name__)

TRIES = 2  # of a step that raises, before the requests in it are given up
IDLE_S = 1.0  # without work, before free memory is given back: resident memory grew in steps over 20 minutes without
MAX_FAILURES = 6  # steps in a row that raise, before the thread gives up


class QueueFull(DachengError):
    """As many requests wait as may. retry_after_s: when one is likely to have been admitted."""

    def __init__(self, max_waiting: int, retry_after_s: float) -> None:
        self._max_waiting, self.retry_after_s = max_waiting, retry_after_s
        super().__init__(
            "too many requests are waiting",
            field="max_waiting",
            value=max_waiting,
            remedy=f"try again in {retry_after_s:.0f} s",
        )

    def __reduce__(self) -> tuple:
        return (QueueFull, (self._max_waiting, self.retry_after_s))


class AsyncEngine:
    """`Engine.step` on a thread of its own; everything else is called from one asyncio loop.

    max_waiting: requests that may wait for a place in the batch. watchdog_s: a step that takes longer is taken to hang:
    `healthy` is False as long as it lasts. turns: shared by the engines of one process, which step one after the other.
    The engine belongs to the thread from `start` to the end of `stop`.
    """

    def __init__(
        self, engine: Engine, *, max_waiting: int = 64, watchdog_s: float = 60.0, turns: Turns | None = None
    ) -> None:
        self.engine, self.max_waiting, self.watchdog_s = engine, max_waiting, watchdog_s
        self._turns: contextlib.AbstractContextManager[None] = contextlib.nullcontext() if turns is None else turns
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()  # run on the thread between two steps; guarded by _wake
        self._submitted = 0  # of them, those that will add a request
        self._state = "stopped"  # running | draining | stopping | stopped | dead
        self._step_started: float | None = None
        self._open = False  # the inbox is read; guarded by _wake
        # Of the thread, by request id; queues and futures are the loop's.
        self._texts: dict[int, tuple[Request, asyncio.Queue[StepOutput]]] = {}
        self._embeddings: dict[int, tuple[Embedding, asyncio.Future[Tensor]]] = {}
        self._request_s = 1.0  # how long a request takes from its first step on, a moving mean

    # The loop's side

    def start(self) -> None:
        """Starts the thread. Call it from the loop that will ask."""
        if self._thread is None or not self._thread.is_alive():
            self._loop = asyncio.get_running_loop()
            self._state, self._open = "running", True
            self._thread = threading.Thread(target=self._drive, name="dacheng-engine", daemon=True)
            self._thread.start()

    async def stop(self, drain: bool = True, timeout_s: float = 30) -> None:
        """Refuses what comes from now on, lets what is there finish (drain) or cancels it, and ends the thread. What is
        not finished after `timeout_s` is cancelled."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            return
        self._set_state("draining" if drain else "stopping")
        if drain:
            await asyncio.to_thread(thread.join, timeout_s)
            if thread.is_alive():
                self._set_state("stopping")
        await asyncio.to_thread(thread.join, self.watchdog_s)
        await asyncio.sleep(0)  # the last outputs are handed out

    def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        deadline_s: float | None = None,
        salt: str = "",
        adapter: str = "",
    ) -> AsyncGenerator[StepOutput, None]:
        """The outputs of one request as they come; the last has a finish_reason. Closing the iterator, or cancelling
        the task that waits for it, ends the request within a step.

        deadline_s: seconds from now after which it ends. salt, adapter: see Request. Raises QueueFull at once, and what
        Engine.add raises before the first item. "error" is a finish_reason (output.error says why), not an exception.
        """
        self._refuse_if_full()
        return self._generate(prompt, params, deadline_s, salt, adapter)

    async def _generate(
        self, prompt: str | Sequence[int], params: SamplingParams, deadline_s: float | None, salt: str, adapter: str
    ) -> AsyncGenerator[StepOutput, None]:
        self._refuse_if_full()
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        request = Request(self.engine.encode(prompt), params, deadline=deadline, salt=salt, adapter=adapter)
        if params.grammar is not None:  # compiled here, not between two steps of the others
            grammar = params.grammar
            await asyncio.to_thread(lambda: self.engine.grammars.matcher(grammar))
            self._refuse_if_full()
        outputs: asyncio.Queue[StepOutput] = asyncio.Queue()
        added = self._submit(lambda: self._texts.update({self.engine.add(request): (request, outputs)}))
        finished = False
        try:
            await added
            while not finished:
                output = await outputs.get()
                finished = output.finish_reason is not None
                yield output
        finally:
            if not finished:
                self._tell(lambda: self._cancel(request))

    async def embed(self, texts: list[list[int]], *, adapter: str = "") -> list[Tensor]:
        """One vector (D,) of length 1 per list of token ids. Raises as `generate` does."""
        self._refuse_if_full()
        requests = [Embedding(ids, adapter=adapter) for ids in texts]
        vectors: list[Tensor] = []
        try:
            for start in range(0, len(requests), self.engine.scheduler.max_batch):  # no more wait than can run
                batch = requests[start : start + self.engine.scheduler.max_batch]
                vectors += await asyncio.gather(*[self._embed(request) for request in batch])
        except BaseException:
            self._tell(lambda: self._cancel(*requests))
            raise
        return vectors

    async def _embed(self, request: Embedding) -> Tensor:
        assert self._loop is not None
        vector: asyncio.Future[Tensor] = self._loop.create_future()
        await self._submit(lambda: self._embeddings.update({self.engine.add(request): (request, vector)}))
        return await vector

    async def load_adapter(self, name: str, path: Path | str) -> None:
        """Reads a PEFT directory in a thread, and puts it on the model between two steps. Raises as AdapterBank."""
        bank = need_bank(self.engine.adapters)
        adapter = await asyncio.to_thread(bank.read, path)
        await self._submit(lambda: bank.install(name, adapter))

    async def unload_adapter(self, name: str) -> None:
        """No request gets it from now on; those that have it go on to their end."""
        bank = need_bank(self.engine.adapters)
        await self._submit(lambda: bank.unload(name))

    @property
    def healthy(self) -> bool:
        """False when the thread died or is not there, or when a step takes longer than watchdog_s."""
        started = self._step_started
        hangs = started is not None and time.monotonic() - started > self.watchdog_s
        return self._thread is not None and self._thread.is_alive() and not hangs

    def stats(self) -> dict[str, float]:
        """Engine.stats(); those that are on their way to the thread are waiting."""
        found = self.engine.stats()
        found["num_requests_waiting"] += self._submitted
        return found

    def _refuse_if_full(self) -> None:
        if self._state != "running":
            raise DachengError(
                "the engine takes no requests", field="state", value=self._state, remedy="start it, or ask another one"
            )
        waiting = self._submitted + len(self.engine.scheduler.waiting)
        if waiting >= self.max_waiting:
            turns = waiting / self.engine.scheduler.max_batch
            raise QueueFull(self.max_waiting, max(1.0, turns * self._request_s))

    def _submit(self, add: Callable[[], object]) -> asyncio.Future[None]:
        """Runs `add` on the thread; the future has what it raised."""
        assert self._loop is not None
        loop, done = self._loop, self._loop.create_future()

        def run() -> None:
            try:
                add()
            except DachengError as error:
                _post(loop, _settle, done, None, error)
            else:
                _post(loop, _settle, done, None, None)
            finally:
                with self._wake:
                    self._submitted -= 1

        with self._wake:
            self._submitted += 1
        if not self._tell(run):
            with self._wake:
                self._submitted -= 1
            raise _broken(None)
        return done

    def _tell(self, command: Callable[[], Any]) -> bool:
        """False when nobody listens any more."""
        with self._wake:
            if self._open:
                self._inbox.append(command)
                self._wake.notify()
            return self._open

    def _set_state(self, state: str) -> None:
        with self._wake:
            if self._state != "dead":
                self._state = state
            self._wake.notify()

    # The thread's side

    def _drive(self) -> None:
        failures = 0
        try:
            while self._listen():
                if not self.engine.has_work:
                    continue
                try:
                    with self._turns:
                        self._step_started = time.monotonic()
                        outputs = self.engine.step()
                    failures = 0
                except Exception as error:
                    failures += 1
                    log.exception("a step failed, %d in a row", failures)
                    if failures == MAX_FAILURES:
                        raise
                    # A step that raised has changed nothing, so it can be tried again.
                    outputs = self.engine.end("error", _broken(error), running=True) if failures % TRIES == 0 else []
                finally:
                    self._step_started = None
                self._deliver(outputs)
            self._state = "stopped"
        except BaseException:
            log.exception("the engine's thread died")
            self._state = "dead"
        finally:
            self._end_all()

    def _listen(self) -> bool:
        """Runs what the loop asked for, waiting for it while there is nothing else to do. False: it is time to end."""
        with self._wake:
            if not self._wake.wait_for(self._is_called, IDLE_S):
                return_free_memory()
                self._wake.wait_for(self._is_called)
            commands, self._inbox = self._inbox, deque()
        for command in commands:
            command()
        return self._state == "running" or (self._state == "draining" and self.engine.has_work)

    def _is_called(self) -> bool:
        return bool(self._inbox) or self.engine.has_work or self._state != "running"

    def _cancel(self, *requests: Request) -> None:
        for request in requests:
            self.engine.cancel(request.id)
            self._texts.pop(request.id, None)
            self._embeddings.pop(request.id, None)

    def _deliver(self, outputs: list[StepOutput]) -> None:
        assert self._loop is not None
        handed: list[tuple[asyncio.Queue[StepOutput], StepOutput]] = []
        for output in outputs:
            ended = output.finish_reason is not None
            if output.request_id in self._texts:
                request, queue = self._texts[output.request_id]
                handed.append((queue, output))
                if ended:
                    del self._texts[output.request_id]
                    self._note(request)
            elif ended and output.request_id in self._embeddings:
                reading, future = self._embeddings.pop(output.request_id)
                if output.finish_reason == "stop":
                    _post(self._loop, _settle, future, reading.unit_vector(), None)
                else:
                    _post(self._loop, _settle, future, None, output.error or _ended(str(output.finish_reason)))
        if handed:
            _post(self._loop, _hand_out, handed)  # one wake-up of the loop a step

    def _note(self, request: Request) -> None:
        if request.finished_at is not None and request.first_token_at is not None:
            self._request_s += 0.1 * (request.finished_at - request.first_token_at - self._request_s)

    def _end_all(self) -> None:
        """Ends what is left when the thread ends, so that nobody waits for ever."""
        with self._wake:
            self._open = False
            commands, self._inbox = self._inbox, deque()
        for command in commands:
            command()
        if self._state == "dead":
            self._deliver(self.engine.end("error", _broken(None)))
        else:
            self._deliver(self.engine.end("cancelled"))


def _settle(future: asyncio.Future, result: Any, error: BaseException | None) -> None:
    if not future.done():
        future.set_result(result) if error is None else future.set_exception(error)


def _hand_out(handed: list[tuple[asyncio.Queue[StepOutput], StepOutput]]) -> None:
    for queue, output in handed:
        queue.put_nowait(output)


def _post(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:  # the loop is closed: nobody waits any more
        log.debug("an output came after its loop was closed")


def _broken(error: BaseException | None) -> DachengError:
    return DachengError(
        "the engine broke down", field="engine", value=error, remedy="see the log; the server must be started again"
    )


def _ended(reason: str) -> DachengError:
    return DachengError("the request was ended", field="finish_reason", value=reason, remedy="ask again")
