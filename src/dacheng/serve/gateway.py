"""The door of the server: who is let in, under which id, and the one line that is logged of each request."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders

from dacheng.serve.api_error import APIError
from dacheng.serve.exchange import JSON
from dacheng.serve.keys import Keys
from dacheng.serve.page import LABEL_PATHS, PAGE_PATHS, RUN_PATHS

access_log = logging.getLogger("dacheng.access")

OPEN_PATHS = ("/health", *PAGE_PATHS, *RUN_PATHS, *LABEL_PATHS)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Gateway:
    """An ASGI application around the server's own.

    hosts: names that a Host header may have, None for any: a page of another site that rebinds its own name to this
    machine's address is refused. Each request gets an id (the client's X-Request-Id, if it is one), and one line in
    the log "dacheng.access": JSON, without anything that was asked or answered.
    """

    def __init__(self, app: Any, keys: Keys, hosts: Collection[str] | None = None) -> None:
        self._app, self._keys = app, keys
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        began, status = time.perf_counter(), 0

        async def stamped(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    out.setdefault(name, value)
                out["X-Request-Id"] = out["Request-Id"] = request_id
            await send(message)

        state["tenant"] = self._keys.tenant(headers)
        refusal = self._refusal(scope, headers)
        try:
            if refusal is None:
                await self._app(scope, receive, stamped)
            else:
                body = refusal.body(scope["path"], request_id)
                await JSON(body, refusal.status, refusal.headers)(scope, receive, stamped)
        finally:
            if not state.get("logged"):  # by the process that the request was passed on to
                _log(scope, status, began)

    def _refusal(self, scope: Any, headers: Headers) -> APIError | None:
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            return APIError(403, "this server does not answer to that host name", param="Host", code="unknown_host")
        if scope["path"] not in OPEN_PATHS and scope["state"]["tenant"] is None:
            problem = "a key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY"
            return APIError(401, problem, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return None


def _host(header: str) -> str:
    """A Host header without its port."""
    name = header.lower()
    return name[1 : name.find("]")] if name.startswith("[") else name.partition(":")[0]


def _log(scope: Any, status: int, began: float) -> None:
    state = scope["state"]
    client = scope.get("client")
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": state["request_id"],
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": 499 if state.get("gone") else status,
        "seconds": round(time.perf_counter() - began, 4),
    }
    meter = state.get("meter")
    if meter is not None and meter.model_name:
        line |= {
            "model": meter.model_name,
            "prompt_tokens": meter.prompt_tokens,
            "cached_tokens": meter.cached_tokens,
            "completion_tokens": meter.completion_tokens,
            "finish_reasons": sorted(set(meter.reasons)),
        }
        if meter.first_token_s is not None:
            line["first_token_s"] = round(meter.first_token_s, 4)
    if meter is not None:
        meter.count(state.get("handler", "none"), scope["method"], line["status"])
    access_log.info(json.dumps(line))
