"""One HTTP request and its answer: the body read within limits, the client watched while the model works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import Response

from dacheng.errors import DachengError
from dacheng.serve.api_error import APIError, from_dacheng, to_json
from dacheng.serve.failures import log_failure
from dacheng.serve.fields import Fields, parse_json
from dacheng.serve.limits import Limits
from dacheng.serve.metrics import Meter, Metrics
from dacheng.serve.served_model import Models, ServedModel

if TYPE_CHECKING:
    from starlette.requests import Request

T = TypeVar("T")
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(Exception):
    """The client has closed the connection: nobody reads an answer."""


class JSON(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


@dataclass(slots=True)
class Exchange:
    """request, with what the server knows beside it. `body` is there once `read` was called."""

    request: Request
    models: Models
    limits: Limits
    metrics: Metrics
    meter: Meter
    body: Fields = field(default_factory=lambda: Fields({}))
    model_name: str = ""
    _owned: list[AsyncGenerator[Any, None]] = field(default_factory=list)

    @property
    def path(self) -> str:
        return self.request.url.path

    @property
    def request_id(self) -> str:
        return self.request.scope.get("state", {}).get("request_id", "")

    def salt(self, given: str = "") -> str:
        """Of the prefix cache: whoever has another key, or asked for another salt, shares nothing."""
        return f"{self.request.scope.get('state', {}).get('tenant') or ''}:{given}"

    async def read(self) -> None:
        """Raises APIError: 408, 413, 415, or 400 for what is no JSON object."""
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise APIError(415, "send the body as Content-Type: application/json", code="unsupported_media_type")
        self.body = Fields(parse_json(await read_body(self.request, self.limits)))

    def find_model(self, *, required: bool = True) -> ServedModel:
        """The model that the field "model" names; without `required`, the first where it is absent."""
        name = self.body.text("model", longest=256)
        if name is None and not required:
            name = self.models.served[0].name
        self.model_name = self.body.demand("model", name)
        model = self.models.find(self.model_name)
        self.meter.model_name = model.name
        return model

    def owned(self, events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Closed when the exchange ends, whichever way."""
        self._owned.append(events)
        return events

    async def close(self) -> None:
        for events in self._owned:
            await events.aclose()

    async def answer(self, work: Awaitable[Any]) -> Response:
        """The result as JSON; when the client goes, the work is cancelled."""
        return JSON(await until_gone(self.request.receive, work))

    async def stream(self, parts: AsyncGenerator[bytes, None]) -> Response:
        """Server-sent events. The first is waited for here, so that a refusal still has its status."""
        first = await until_gone(self.request.receive, anext(parts))
        return EventStream(self, first, self.owned(parts))


class EventStream(Response):
    """Sends events as they come. When the client goes, or leaves them unread too long, the work is cancelled."""

    def __init__(self, exchange: Exchange, first: bytes, parts: AsyncGenerator[bytes, None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(status_code=200, headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]
        self._exchange, self._first, self._parts = exchange, first, parts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await until_gone(receive, self._send_all(send))
        except ClientGone:
            scope.setdefault("state", {})["gone"] = True
        finally:
            await self._exchange.close()

    async def _send_all(self, send: Send) -> None:
        await self._piece(send, self._first)
        try:
            async for part in self._parts:
                await self._piece(send, part)
        except (APIError, DachengError) as error:
            await self._piece(send, self._error(error))
        except ClientGone:
            raise
        except Exception as error:
            log_failure(error, self._exchange.request_id)
            await self._piece(send, self._error(APIError(500, "the server failed; its log says where")))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _piece(self, send: Send, body: bytes) -> None:
        try:
            async with asyncio.timeout(self._exchange.limits.send_s):
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except TimeoutError:
            raise ClientGone from None

    def _error(self, error: APIError | DachengError) -> bytes:
        known = error if isinstance(error, APIError) else from_dacheng(error, "prompt")
        return error_event(known, self._exchange.path, self._exchange.request_id)


def error_event(error: APIError, path: str, request_id: str) -> bytes:
    """The event that ends a stream which fails, as the API that `path` belongs to writes it."""
    name = b"event: error\n" if path.startswith(("/v1/messages", "/v1/responses")) else b""
    return name + b"data: " + to_json(error.body(path, request_id)) + b"\n\n"


async def read_body(request: Request, limits: Limits) -> bytes:
    """All of it. Raises APIError 413 and 408, and ClientGone."""
    close, most = {"Connection": "close"}, limits.body_bytes
    too_large = APIError(413, f"the body has more than {most} bytes", code="body_too_large", headers=close)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > most:
        raise too_large
    raw = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                raw += message.get("body", b"")
                if len(raw) > most:
                    raise too_large
                if not message.get("more_body"):
                    return bytes(raw)
    except TimeoutError:
        problem = f"the body did not arrive within {limits.body_s:g} s"
        raise APIError(408, problem, code="body_timeout", headers=close | {"x-should-retry": "false"}) from None


async def until_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled, and has ended, when the client goes. Raises ClientGone then."""
    task: asyncio.Task[T] = asyncio.create_task(_awaited(work))
    watcher = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _awaited(work: Awaitable[T]) -> T:
    return await work


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def new_meter(metrics: Metrics) -> Meter:
    return Meter(metrics, time.perf_counter())
