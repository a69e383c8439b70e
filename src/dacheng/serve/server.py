"""uvicorn around the application: bounded heads, graceful stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dacheng.errors import DachengError, UsageError

BACKLOG = 512
TOGETHER_S = 0.5
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def timed_protocol(header_s: float) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 that closes a connection on which the head of a request does not arrive in time."""

    class Timed(H11Protocol):
        _watch: asyncio.TimerHandle | None = None
        _seen: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch = self.loop.call_later(header_s, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._watch is not None:
                self._watch.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            """Closes when nothing is being answered and nothing was since the last look."""
            busy = self.cycle is not None and not self.cycle.response_complete
            if not busy and self._seen is self.cycle:
                self.transport.close()
                return
            self._seen = self if busy else self.cycle
            self._watch = self.loop.call_later(header_s, self._look)

    return Timed


class Server(uvicorn.Server):
    """SIGTERM and SIGINT stop accepting and let running requests finish; the second ends at once. One that comes with
    the first is the first: supervisors signal a process and its group."""

    quiet = False
    on_stop: Callable[[], None] | None = None
    _stopping_since: float | None = None

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self._stopping_since is not None:
            if time.monotonic() - self._stopping_since > TOGETHER_S:
                self.force_exit = True
                logging.getLogger("uvicorn.error").disabled = True  # it would report what it has to leave undone
        else:
            self._stopping_since = time.monotonic()
            if self.on_stop is not None:
                self.on_stop()
            if not self.quiet:
                print("stopping: what is running may finish; once more ends at once", file=sys.stderr, flush=True)
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without raising the signals again: a stop that was asked for is no failure."""
        try:
            before = {sig: signal.signal(sig, self.handle_exit) for sig in SIGNALS}
        except ValueError:  # not the main thread: whoever runs us stops us
            yield
            return
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def leave_on_signal() -> None:
    """Until the server handles signals, SIGINT and SIGTERM end the process at once: nothing is to be saved, and an
    exception, raised wherever the import of a library stands, might be caught there."""

    def leave(sig: int, frame: Any) -> None:
        os.write(2, b"interrupted\n")
        os._exit(130)

    with contextlib.suppress(ValueError):  # not the main thread
        for sig in SIGNALS:
            signal.signal(sig, leave)


def bind(host: str, port: int) -> socket.socket:
    """A bound socket (port 0: any free one). Raises UsageError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio switches Nagle's algorithm off only where it is: with it, every piece of a
    # stream waits up to 40 ms for the client's acknowledgement of the one before.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        problem = getattr(error, "strerror", None) or str(error)
        remedy = "another server may have it: choose another with --port, or 0 for any that is free"
        raise UsageError(f"cannot listen there: {problem}", field="--port", value=f"{host}:{port}",
                         remedy=remedy) from None  # fmt: skip
    return found


def make_server(app: Any, *, header_s: float = 15.0, drain_s: float = 30.0, connections: int = 1024) -> Server:
    """connections: more at once are answered 503."""
    config = uvicorn.Config(
        app,
        http=timed_protocol(header_s),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(drain_s)),
        limit_concurrency=connections,
        backlog=BACKLOG,
    )
    return Server(config)


def serve(
    app: Any, listener: socket.socket, *, ready: Callable[[], None] | None = None, header_s: float = 15.0,
    drain_s: float = 30.0, quiet: bool = False,
) -> bool:  # fmt: skip
    """Serves until a signal. ready is called when requests are taken. quiet: a stop is not announced. Returns False
    when stopping was cut short.

    Raises DachengError when the application does not start.
    """
    server = make_server(app, header_s=header_s, drain_s=drain_s)
    server.quiet = quiet
    asyncio.run(run(server, listener, ready))
    return not server.force_exit


async def run(server: Server, listener: socket.socket, ready: Callable[[], None] | None = None) -> None:
    """Until a signal, or until `should_exit` is set. Raises DachengError when the application does not start."""
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started and ready is not None:
        ready()
    await serving
    if not server.started:
        raise DachengError("the server did not start", remedy="its log says why")


def log_to_stderr(level: int = logging.INFO) -> None:
    """Access lines as they are, everything else as JSON lines of time, level and text."""

    class Line(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            text = record.getMessage()
            if record.name == "dacheng.access":
                return text
            return json.dumps({"level": record.levelname.lower(), "logger": record.name, "message": text})

    handler = logging.StreamHandler()
    handler.setFormatter(Line())
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every piece that a client did not wait for
    for name in ("dacheng", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level if name == "dacheng" else logging.WARNING)
