"""The page of a run: its journal as server-sent events, questions to it, its passages, and the plug of its trainer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Protocol

from dacheng.errors import DachengError
from dacheng.serve.api_error import APIError, to_json
from dacheng.serve.endpoint import Handler
from dacheng.serve.exchange import Exchange
from dacheng.stages.adapting.events import Tail

MODES = ("bare", "sources", "adapted", "quote")
POLL_S = 0.15
LONGEST_QUESTION = 2000  # characters
_HEARTBEATS = 100  # polls without an event, after which a comment keeps the connection


class ShownRun(Protocol):
    """What the page asks of a run: dacheng.stages.adapting.run.Run, and where it is served."""

    @property
    def events_path(self) -> Path: ...

    @property
    def closed(self) -> bool: ...

    def ask(self, question: str, mode: str) -> dict[str, Any]: ...

    def pull_plug(self) -> bool: ...

    def passage(self, number: int) -> dict[str, Any] | None: ...


def run_handlers(run: ShownRun) -> list[tuple[str, str, Handler]]:
    """(method, path, handler) of each route."""

    async def events(exchange: Exchange) -> Any:
        """The journal, from the event behind Last-Event-ID on."""
        last = exchange.request.headers.get("last-event-id", "")
        after = int(last) if last.isdecimal() and len(last) < 12 else 0
        return await exchange.stream(_journal(run, after))

    async def ask(exchange: Exchange) -> Any:
        """{"question", "mode"} -> one event: the answer, or an error."""
        body = exchange.body
        question = body.demand("question", body.text("question", longest=LONGEST_QUESTION))
        mode = body.text("mode", "adapted", choices=MODES)
        body.done()
        if not question.strip():
            raise APIError(400, "there is no question", param="question", code="invalid_value")
        return await exchange.stream(_answer(run, question, mode))

    async def plug(exchange: Exchange) -> Any:
        """Kills the trainer. {"pulled": false} where none is at work."""
        exchange.body.done()
        return {"pulled": await asyncio.to_thread(run.pull_plug)}

    async def passage(exchange: Exchange) -> Any:
        number = exchange.request.path_params["number"]
        found = await asyncio.to_thread(run.passage, int(number)) if number < 2**62 else None
        if found is None:
            raise APIError(404, "there is no such passage", param="id", code="passage_not_found")
        return found

    return [
        ("GET", "/run/events", events),
        ("POST", "/run/ask", ask),
        ("POST", "/run/plug", plug),
        ("GET", "/run/passages/{number:int}", passage),
    ]


async def _journal(run: ShownRun, after: int) -> AsyncGenerator[bytes, None]:
    tail, quiet = Tail(run.events_path, after), 0
    yield b"retry: 1000\n\n"
    while not run.closed:
        found = tail.read()
        for event in found:
            data = json.dumps(event.to_dict(), ensure_ascii=False).encode("utf-8", "replace")
            yield b"id: %d\ndata: %b\n\n" % (event.n, data)
        quiet = 0 if found else quiet + 1
        if quiet == _HEARTBEATS:
            quiet = 0
            yield b": still here\n\n"
        if not found:
            await asyncio.sleep(POLL_S)


async def _answer(run: ShownRun, question: str, mode: str) -> AsyncGenerator[bytes, None]:
    yield b": asked\n\n"
    try:
        answer = await asyncio.to_thread(run.ask, question, mode)
    except DachengError as error:
        said = {"error": {"message": error.problem + (f": {error.remedy}" if error.remedy else "")}}
        yield b"data: " + to_json(said) + b"\n\n"
        return
    yield b"data: " + to_json({"answer": answer}) + b"\n\n"
