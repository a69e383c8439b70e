"""What changes an engine process goes to all of them, and again to those that come later."""

from __future__ import annotations

import asyncio
import json

from dacheng.serve.api_error import APIError
from dacheng.serve.upstream import Headers, Lost, Upstream
from dacheng.serve.worker import CLIENT, KEY
from dacheng.serve.workers import Worker, Workers

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
EVERYWHERE = (LOAD, UNLOAD)


class Everywhere:
    """Keeps the adapters of all processes the same. One change at a time."""

    def __init__(self, workers: Workers) -> None:
        self._workers, self._lock = workers, asyncio.Lock()
        self._done: list[tuple[str, str, bytes]] = []  # (route, name of the adapter, body) that new ones are told

    async def ask(self, path: str, headers: Headers, body: bytes) -> tuple[Upstream, bytes]:
        """The answer of the processes, which is one where they agree; the first refusal where they do not, and what
        was loaded is let go again. Raises APIError 503 when there is no process."""
        async with self._lock:
            answers: list[tuple[Worker, Upstream, bytes]] = []
            for worker in self._workers.ready:
                try:
                    shown = headers if not answers else [(k, v) for k, v in headers if k != CLIENT.encode()]
                    answers.append((worker, *await _post(worker, path, shown, body)))
                except Lost:
                    continue  # its successor is told
            if not answers:
                raise APIError(
                    503, "no engine process takes requests", code="worker_lost", headers={"Retry-After": "5"}
                )
            refused = [answer for answer in answers if answer[1].status != 200]
            if refused:
                if path == LOAD:
                    for worker, answer, _ in answers:
                        if answer.status == 200:
                            await self._undo(worker, headers, body)
                return refused[0][1], refused[0][2]
            self._note(path, body)
            return answers[0][1], answers[0][2]

    async def repeat(self, worker: Worker) -> None:
        """Tells a process that has just started what the others were told. Raises Lost."""
        async with self._lock:
            for path, _, body in self._done:
                await _post(worker, path, [(b"content-type", b"application/json")], body)

    async def _undo(self, worker: Worker, headers: Headers, body: bytes) -> None:
        known = json.dumps({"lora_name": _name(body)}).encode()
        try:
            await _post(worker, UNLOAD, [(k, v) for k, v in headers if k != CLIENT.encode()], known)
        except Lost:
            pass

    def _note(self, path: str, body: bytes) -> None:
        name = _name(body)
        loaded = [i for i, (route, known, _) in enumerate(self._done) if route == LOAD and known == name]
        if path == UNLOAD and loaded:
            del self._done[loaded[-1]]
        else:
            self._done.append((path, name, body))


def _name(body: bytes) -> str:
    return str(json.loads(body).get("lora_name"))


async def _post(worker: Worker, path: str, headers: Headers, body: bytes) -> tuple[Upstream, bytes]:
    key = (KEY.encode(), worker.key.encode())
    answer = await Upstream.ask(worker.address, "POST", path.encode(), [*headers, key], body)
    try:
        return answer, await answer.whole()
    finally:
        answer.close()
