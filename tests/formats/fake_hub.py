"""A hub on this machine: the API and the files that an import asks for, and the ways in which they go wrong."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LARGE = 2000  # files from this size on are in LFS


class FakeHub:
    """files: path -> content. The rest is what goes wrong; `seen` is what was asked: (path, Range, Authorization)."""

    def __init__(self, files: dict[str, bytes], repo: str = "org/tiny") -> None:
        self.files, self.repo = files, repo
        self.seen: list[tuple[str, str | None, str | None]] = []
        self.failures: Counter[str] = Counter()  # path or "api" -> how many 503s come first
        self.cut: dict[str, list[int]] = {}  # path -> after how many bytes the connection ends, once each
        self.wrong: dict[str, bytes] = {}  # path -> what is sent instead
        self.token: str | None = None
        self.elsewhere: str | None = None  # LFS files are redirected there
        self.ranges = True
        self.pause_s = 0.0  # between blocks of 64 KiB
        self.edit: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.endpoint = ""

    def listing(self) -> Any:
        siblings = []
        for path, content in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob}
            if len(content) >= LARGE:
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return self.edit({"sha": COMMIT, "siblings": siblings, "cardData": {"license": "apache-2.0"}})

    @contextmanager
    def serving(self) -> Iterator[FakeHub]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                hub.seen.append((path, self.headers.get("Range"), self.headers.get("Authorization")))
                secret = None if hub.token is None else f"Bearer {hub.token}"
                if secret not in (None, self.headers.get("Authorization")) and not path.startswith("/cdn/"):
                    return self.answer(401, b"who are you?")
                if path.startswith(f"/api/models/{hub.repo}/revision/"):
                    if not path.endswith(("/main", f"/{COMMIT}", "/v1/2")):
                        return self.answer(404, b"no")
                    return self.fails("api") or self.answer(200, json.dumps(hub.listing()).encode())
                name = path.removeprefix("/cdn/").removeprefix(f"/{hub.repo}/resolve/{COMMIT}/")
                if name not in hub.files:
                    return self.answer(404, b"no such file")
                if self.fails(name):
                    return None
                if hub.elsewhere and len(hub.files[name]) >= LARGE and not path.startswith("/cdn/"):
                    self.send_response(302)
                    self.send_header("Location", f"{hub.elsewhere}/cdn/{name}?X-Signature=secret")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return None
                return self.send_file(name)

            def fails(self, name: str) -> bool:
                if hub.failures[name] <= 0:
                    return False
                hub.failures[name] -= 1
                self.answer(503, b"busy", {"Retry-After": "0"})
                return True

            def send_file(self, name: str) -> None:
                content = hub.wrong.get(name, hub.files[name])
                start = 0
                if hub.ranges and (wanted := self.headers.get("Range")):
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                    if start >= len(content):
                        return self.answer(416, b"")
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                end = len(content)
                if hub.cut.get(name):
                    end = start + hub.cut[name].pop(0)
                for position in range(start, end, 1 << 16):
                    self.wfile.write(content[position : min(end, position + (1 << 16))])
                    self.wfile.flush()
                    time.sleep(hub.pause_s)
                if end < len(content):
                    self.close_connection = True
                return None

            def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler
