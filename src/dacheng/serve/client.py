"""A small client of OpenAI's chat API over the standard library: what `dacheng chat` and the self-test need."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from dacheng.errors import DachengError, UsageError


class Client:
    """url: of the server ("http://127.0.0.1:8000", with or without /v1). key: sent as a bearer token."""

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 120.0) -> None:
        """Raises UsageError for what is no http URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("this is no URL of a server", field="url", value=url, remedy="http://127.0.0.1:8000")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._host, self._port, self._tls = parts.hostname, parts.port, parts.scheme == "https"
        self._base = urlsplit(self.url).path.rstrip("/")
        self._key, self._timeout = key, timeout_s

    def request(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, key: str | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers by lower-case name, body). raw: sent instead of `body` as JSON. key: instead of our own.

        Raises DachengError when the server cannot be reached.
        """
        connection, answer = self._open(method, path, body, raw, key)
        try:
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, headers, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """The answer. Raises DachengError with the server's own words for a status that is no 2xx."""
        status, _, raw = self.request(method, path, body)
        if status >= 300:
            raise _refused(status, raw)
        return json.loads(raw)

    def events(self, path: str, body: Any) -> Iterator[dict[str, Any]]:
        """Server-sent events, up to [DONE]. Closing the iterator closes the connection, which cancels the request."""
        connection, answer = self._open("POST", path, body, None, None)
        try:
            if answer.status >= 300:
                raise _refused(answer.status, answer.read())
            for line in answer:
                if line.startswith(b"data: "):
                    if line.strip() == b"data: [DONE]":
                        return
                    event = json.loads(line[6:])
                    if event.get("error"):
                        raise DachengError(f"the server broke off: {event['error'].get('message')}")
                    yield event
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error
        finally:
            connection.close()

    def chat(self, payload: dict[str, Any]) -> Iterator[str]:
        """Pieces of the answer to a chat."""
        for event in self.events("/v1/chat/completions", payload | {"stream": True}):
            for choice in event["choices"]:
                if text := choice["delta"].get("content"):
                    yield text

    def _open(
        self, method: str, path: str, body: Any, raw: bytes | None, key: str | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout)
        headers = {"Accept": "application/json"}
        if known := self._key if key is None else key:
            headers["Authorization"] = f"Bearer {known}"
        content = raw
        if body is not None or raw is not None:
            headers["Content-Type"] = "application/json"
            content = raw if body is None else json.dumps(body).encode()
        try:
            connection.request(method, self._base + path, content, headers)
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> DachengError:
        return DachengError(f"no answer from the server: {error}", field="url", value=self.url,
                            remedy="start one: dacheng serve --model DIR")  # fmt: skip


def _refused(status: int, raw: bytes) -> DachengError:
    try:
        message = json.loads(raw)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = raw[:200].decode("utf-8", "replace")
    remedy = "give a key: set DACHENG_API_KEY" if status == 401 else None
    return DachengError(f"the server refuses ({status}): {message}", remedy=remedy)
