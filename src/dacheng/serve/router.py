"""The front of several engine processes: each request goes to one of them, and its answer comes back as it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from dacheng.serve.affinity import Affinity, chain
from dacheng.serve.api_error import APIError
from dacheng.serve.everywhere import EVERYWHERE, Everywhere
from dacheng.serve.exchange import JSON, ClientGone, error_event, read_body, until_gone
from dacheng.serve.failures import log_failure
from dacheng.serve.fleet_metrics import FleetMetrics
from dacheng.serve.limits import Limits
from dacheng.serve.upstream import Headers, Lost, Unreachable, Upstream
from dacheng.serve.worker import CLIENT, KEY, TENANT
from dacheng.serve.workers import Worker, Workers

log = logging.getLogger("dacheng.serve")

GAP = 4.0  # requests by which the process that knows a whole prompt may be busier than the least busy one
# Of a request whose process went before anything of its answer was sent on. Two: when two processes are killed at once,
# the sockets of the second still take a request for a moment. No more, for it may be the request that kills them.
RETRIES = 2
WAIT_S = 20.0  # for a process, when there is none
_OWN = (b"host", b"content-length", b"authorization", b"x-api-key", b"cookie", b"x-request-id", b"expect")
_HOP = (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"date")
_FULL = (429, 503)  # another process may have room


@dataclass(slots=True)
class Passage:
    """A request on its way: what is asked, and whether anything of the answer has gone out."""

    method: str
    target: bytes
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    hashes: list[bytes]
    request_id: str
    sent: bool = False


class Router:
    """An ASGI application (behind a Gateway, which says who asks). /health and /metrics are of all processes together;
    everything else is passed on."""

    def __init__(self, workers: Workers, limits: Limits | None = None) -> None:
        self.workers, self.limits = workers, limits or Limits()
        self.affinity, self.metrics = Affinity(), FleetMetrics(workers)
        self._turn = count(1)
        self._everywhere = Everywhere(workers)
        workers.prepare = self._everywhere.repeat  # type: ignore[method-assign]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await _lifespan(receive, send)
            return
        request, state = Request(scope, receive), scope.setdefault("state", {})
        path, request_id = scope["path"], state.get("request_id", "")
        passage: Passage | None = None
        try:
            if scope["method"] in ("GET", "HEAD") and path in ("/health", "/metrics"):
                response = self._health() if path == "/health" else await self.metrics.response()
                await response(scope, receive, send)
                return
            passage = self._passage(request, await read_body(request, self.limits))
            timed = _timed(send, self.limits.send_s)
            if passage.method == "POST" and passage.path in EVERYWHERE:
                state["logged"] = True
                await send_whole(*await self._everywhere.ask(passage.path, passage.headers, passage.body), timed)
                return
            await until_gone(receive, self._pass(passage, state, timed))
        except ClientGone:
            state["gone"] = True
        except APIError as error:
            if passage is not None and passage.sent:
                await _end(send, error_event(error, path, request_id))
            else:
                await JSON(error.body(path, request_id), error.status, error.headers)(scope, receive, send)
        except Exception as error:
            log_failure(error, request_id)
            if passage is not None and passage.sent:
                raise
            known = APIError(500, "the server failed; its log says where", code="internal_error")
            await JSON(known.body(path, request_id), 500)(scope, receive, send)

    def _health(self) -> Response:
        """200 while any process takes requests."""
        slots = self.workers.slots
        states = ["lost" if w is None else "ready" if w.ready and not w.failures else "not ready" for w in slots]
        ready = states.count("ready")
        status = "ok" if ready == len(slots) else "degraded" if self.workers.ready else "failed"
        return JSON({"status": status, "workers": states}, 200 if self.workers.ready else 503)

    def _passage(self, request: Request, body: bytes) -> Passage:
        scope, state = request.scope, request.scope["state"]
        tenant = state.get("tenant") or ""
        client = scope.get("client")
        headers = [
            (name, value) for name, value in scope["headers"]
            if name not in _OWN and name not in _HOP and not name.startswith(b"x-dacheng-")
        ]  # fmt: skip
        headers += [
            (TENANT.encode(), tenant.encode()),
            (CLIENT.encode(), (client[0] if client else "").encode()),
            (b"x-request-id", state.get("request_id", "").encode()),
        ]
        target = scope.get("raw_path") or scope["path"].encode()
        if scope.get("query_string"):
            target += b"?" + scope["query_string"]
        hashes = chain(body, tenant) if body else []
        return Passage(scope["method"], target, scope["path"], headers, body, hashes, state.get("request_id", ""))

    async def _pass(self, passage: Passage, state: dict[str, Any], send: Callable[[Any], Awaitable[None]]) -> None:
        """Asks one process, and another where the first has no room or is gone."""
        tried: set[int] = set()
        full: list[tuple[Upstream, bytes]] = []
        lost = 0
        while lost <= RETRIES:
            worker = await self._choose(passage, tried, wait=not full)
            if worker is None:
                break
            tried.add(worker.id)
            worker.load += 1
            answer: Upstream | None = None
            try:
                key = (KEY.encode(), worker.key.encode())
                state["logged"] = True  # by the process; it sees a client go, too
                answer = await Upstream.ask(
                    worker.address, passage.method, passage.target, [*passage.headers, key], passage.body
                )
                if answer.status in _FULL:
                    full.append((answer, await answer.whole()))
                    continue
                await _relay(answer, passage, send)
                return
            except Unreachable:
                state["logged"] = False
            except Lost:
                state["logged"] = False
                if passage.sent:
                    raise APIError(503, "the engine process broke down in the middle of this answer",
                                   code="worker_lost") from None  # fmt: skip
                lost += 1
                self.metrics.retries += 1
            finally:
                worker.load -= 1
                if answer is not None:
                    answer.close()
        if full:
            answer, body = min(full, key=lambda one: (one[0].status, int(one[0].header(b"retry-after") or 0)))
            await send_whole(answer, body, send)
            return
        state["logged"] = False
        problem = "no engine process takes requests" if not lost else "the engine process broke down"
        raise APIError(503, problem, code="worker_lost", headers={"Retry-After": "5"})

    async def _choose(self, passage: Passage, tried: set[int], *, wait: bool) -> Worker | None:
        """Of those that were not tried: the least busy, where one that knows the prompt's beginning may be a little
        busier. wait: until there is one."""
        workers = self.workers.others(tried)
        if not workers and wait:
            await self.workers.wait_for_another(tried, WAIT_S)
            workers = self.workers.others(tried)
        if not workers:
            return None
        ids = [worker.id for worker in workers]
        shares = self.affinity.shares(passage.hashes, ids)

        def rank(worker: Worker) -> tuple[bool, float, int]:
            return worker.failures > 0, worker.load - GAP * shares.get(worker.id, 0.0), worker.chosen

        best = min(workers, key=rank)
        best.chosen = next(self._turn)
        self.affinity.note(passage.hashes, best.id, {worker.id for worker in self.workers.ready})
        return best


async def _relay(answer: Upstream, passage: Passage, send: Callable[[Any], Awaitable[None]]) -> None:
    """A stream goes on event by event as it comes, never half an event, so that it can be ended at any time; anything
    else when all of it is there. Raises Lost."""
    if not answer.header(b"content-type").startswith(b"text/event-stream"):
        body = await answer.whole()
        passage.sent = True
        await send_whole(answer, body, send)
        return
    rest = b""
    async for piece in answer.pieces():
        rest += piece
        end = rest.rfind(b"\n\n") + 2
        if end < 2:
            continue
        if not passage.sent:
            passage.sent = True
            await send(_start(answer.status, answer.headers))
        await send({"type": "http.response.body", "body": rest[:end], "more_body": True})
        rest = rest[end:]
    if not passage.sent:
        passage.sent = True
        await send(_start(answer.status, answer.headers))
    await _end(send, rest)


async def send_whole(answer: Upstream, body: bytes, send: Callable[[Any], Awaitable[None]]) -> None:
    await send(_start(answer.status, answer.headers))
    await _end(send, body)


async def _end(send: Callable[[Any], Awaitable[None]], body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _start(status: int, headers: Headers) -> dict[str, Any]:
    kept = [(name, value) for name, value in headers if name.lower() not in _HOP]
    return {"type": "http.response.start", "status": status, "headers": kept}


def _timed(send: Any, seconds: float) -> Callable[[Any], Awaitable[None]]:
    """As `send`, for a client that must take each piece within `seconds`. Raises ClientGone."""

    async def timed(message: Any) -> None:
        try:
            async with asyncio.timeout(seconds):
                await send(message)
        except TimeoutError:
            raise ClientGone from None

    return timed


async def _lifespan(receive: Any, send: Any) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})
