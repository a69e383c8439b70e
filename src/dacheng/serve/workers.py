"""The engine processes of a router: started, watched, started again, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from dacheng.errors import DachengError, UsageError
from dacheng.serve.keys import VARIABLE
from dacheng.serve.options import WorkerPlan
from dacheng.serve.server import BACKLOG, bind
from dacheng.serve.upstream import Lost, Upstream
from dacheng.serve.worker import KEY

log = logging.getLogger("dacheng.serve")

HEALTH_S, HEALTH_TIMEOUT_S, SICK = 2.0, 5.0, 3  # a process that fails to answer SICK times in a row is ended
CRASHES, WINDOW_S = 5, 120.0  # as many in as long, and a place is given up
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 15.0
STOP_S = 5.0

_ids = count()


class Worker:
    """One engine process. slot: its place, which its successor takes. id: its own. load: requests it works on."""

    def __init__(self, slot: int, plan: WorkerPlan) -> None:
        self.slot, self.id, self._plan = slot, next(_ids), plan
        self.key = secrets.token_urlsafe(32)
        self.ready, self.load, self.failures, self.chosen = False, 0, 0, 0
        self.address = ("127.0.0.1", 0)
        self.said: dict[str, Any] = {}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when it could take requests; whoever lets it sets `ready`. Raises DachengError as it does, or when it
        ends instead."""
        listener = bind(self.address[0], 0)
        with listener:
            listener.listen(BACKLOG)
            self.address = listener.getsockname()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "dacheng.serve.worker",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, pass_fds=[listener.fileno()],
                env=_environment(self._plan.threads), start_new_session=True,
            )  # fmt: skip
            task = {"plan": self._plan.to_json(), "key": self.key, "listener": listener.fileno()}
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        said = json.loads(line) if line.endswith(b"\n") else {}
        if "ready" not in said:
            code = await self._process.wait()
            raise _failure(said.get("error"), code)
        self.said = said["ready"]

    async def watch(self) -> str:
        """Returns why it is gone: it ended, or had to be ended because it answered no longer."""
        assert self._process is not None
        ended = asyncio.create_task(self._process.wait())
        try:
            while True:
                await asyncio.wait({ended}, timeout=HEALTH_S)
                if ended.done():
                    return f"ended with {ended.result()}"
                self.failures = 0 if await self._healthy() else self.failures + 1
                if self.failures >= SICK:
                    return "answered no longer"
        finally:
            self.ready = False
            ended.cancel()

    async def _healthy(self) -> bool:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                status, _ = await self.get(b"/health")
        except (Lost, TimeoutError):
            return False
        return status == 200

    async def get(self, target: bytes) -> tuple[int, bytes]:
        """(status, body). Raises Lost."""
        answer = await Upstream.ask(self.address, "GET", target, [(KEY.encode(), self.key.encode())], b"")
        try:
            return answer.status, await answer.whole()
        finally:
            answer.close()

    async def stop(self) -> None:
        """Ends it: at once where it works on something, for whoever waited for that is gone."""
        self.ready = False
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL if self.load or self.failures else signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class Workers:
    """As many engine processes as asked for. One that ends is started again, later each time; a place in which
    CRASHES of them ended within WINDOW_S is given up, and when all are, `lost` is set."""

    def __init__(self, plan: WorkerPlan, processes: int) -> None:
        self._plan, self._processes = plan, processes
        self.slots: list[Worker | None] = [None] * processes
        self.restarts, self.stopping = 0, False
        self.lost = asyncio.Event()
        self._changed = asyncio.Condition()

    async def prepare(self, worker: Worker) -> None:
        """What has to happen before a process that has started gets requests: a router sets it."""

    def stop_restarting(self) -> None:
        """What ends from now on stays so."""
        self.stopping = True

    @property
    def ready(self) -> list[Worker]:
        return [worker for worker in self.slots if worker is not None and worker.ready]

    def others(self, tried: Collection[int]) -> list[Worker]:
        """Those that take requests and are not among these (by id)."""
        return [worker for worker in self.ready if worker.id not in tried]

    async def wait_for_another(self, tried: Collection[int], seconds: float) -> None:
        """Until there is one, but no longer than that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: self.others(tried) or self.stopping)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Workers]:
        """Starts them all, and ends them all. Raises DachengError when one does not start."""
        first: list[asyncio.Future[None]] = [asyncio.get_running_loop().create_future() for _ in self.slots]
        keepers = [asyncio.create_task(self._keep(slot, first[slot])) for slot in range(self._processes)]
        try:
            await asyncio.gather(*first)
            yield self
        finally:
            self.stopping = True
            for task in (*keepers, *first):
                task.cancel()
            await asyncio.gather(*keepers, *first, return_exceptions=True)

    async def _keep(self, slot: int, first: asyncio.Future[None]) -> None:
        """Keeps a process in a place."""
        crashes: deque[float] = deque()
        while not self.stopping:
            worker = self.slots[slot] = Worker(slot, self._plan)
            try:
                await worker.start()
                await self.prepare(worker)
                worker.ready = True
                if not first.done():
                    first.set_result(None)
                await self._tell()
                why = await worker.watch()
            except DachengError as error:
                if not first.done():
                    first.set_exception(error)
                    return
                why = error.problem
            except Lost:
                why = "ended as it started"
            finally:
                await asyncio.shield(worker.stop())
            if self.stopping:
                return
            now = time.monotonic()
            crashes.append(now)
            while crashes[0] < now - WINDOW_S:
                crashes.popleft()
            if len(crashes) >= CRASHES:
                log.error("engine process %d %s: %d times in %.0f s, given up", slot, why, len(crashes), WINDOW_S)
                self.slots[slot] = None
                break
            pause = min(BACKOFF_S * 2 ** (len(crashes) - 1), LONGEST_BACKOFF_S)
            log.warning("engine process %d %s: another in %.1f s", slot, why, pause)
            await asyncio.sleep(pause)
            self.restarts += 1
        if not any(self.slots):
            self.lost.set()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _environment(threads: int) -> dict[str, str]:
    """The parent's, without the keys of clients."""
    kept = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return kept | {"OMP_NUM_THREADS": str(threads)}


def _failure(error: dict[str, Any] | None, code: int) -> DachengError:
    if error is None:
        return DachengError("an engine process ended while it started", field="exit code", value=code,
                            remedy="what it wrote is above; -9 is often the kernel, for want of memory")  # fmt: skip
    kind = UsageError if error["exit_code"] == UsageError.exit_code else DachengError
    return kind(error["problem"], field=error["field"], value=error["value"], remedy=error["remedy"])
