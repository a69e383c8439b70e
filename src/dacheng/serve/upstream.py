"""One request to an engine process over HTTP/1.1, and its answer as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import h11

PIECE = 1 << 16  # bytes read at once; no more than twice as many wait to be passed on
CONNECT_S = 5.0

Headers = Sequence[tuple[bytes, bytes]]


class Lost(Exception):
    """The process went before its answer was complete."""


class Unreachable(Lost):
    """It was gone before it was asked."""


class Upstream:
    """The answer of a process: its head, then its body in pieces. `close` ends it within a step where it is not over:
    the process sees that nobody reads."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: h11.Connection) -> None:
        self._reader, self._writer, self._connection = reader, writer, connection
        self.status, self.headers = 0, list[tuple[bytes, bytes]]()

    @classmethod
    async def ask(cls, address: tuple[str, int], method: str, target: bytes, headers: Headers, body: bytes) -> Upstream:
        """Returns when the head of the answer is there. headers: without Host and Content-Length. Raises Lost,
        Unreachable where nothing was asked."""
        connection = h11.Connection(h11.CLIENT)
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(*address, limit=PIECE)
        except (OSError, TimeoutError) as error:
            raise Unreachable(str(error)) from error
        found = cls(reader, writer, connection)
        try:
            host = (b"Host", f"{address[0]}:{address[1]}".encode())
            length = [(b"Content-Length", str(len(body)).encode())] if body or method == "POST" else []
            asked = h11.Request(method=method, target=target, headers=[host, *headers, *length])
            parts = [connection.send(asked), connection.send(h11.Data(data=body)) if body else b"",
                     connection.send(h11.EndOfMessage())]  # fmt: skip
            writer.write(b"".join(part or b"" for part in parts))
            await writer.drain()
            event = await found._next()
            while isinstance(event, h11.InformationalResponse):
                event = await found._next()
            if not isinstance(event, h11.Response):
                raise Lost("no answer")
        except OSError as error:
            found.close()
            raise Lost(str(error)) from error
        except BaseException:
            found.close()
            raise
        found.status, found.headers = event.status_code, [(bytes(name), bytes(value)) for name, value in event.headers]
        return found

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes; what is not taken is not read, so the process waits. Raises Lost."""
        while True:
            event = await self._next()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise Lost("the answer broke off")

    async def whole(self) -> bytes:
        """All of the body. Raises Lost."""
        return b"".join([piece async for piece in self.pieces()])

    def close(self) -> None:
        self._writer.transport.abort()

    async def _next(self) -> Any:
        try:
            while (event := self._connection.next_event()) is h11.NEED_DATA:
                self._connection.receive_data(await self._reader.read(PIECE))
        except (OSError, h11.RemoteProtocolError) as error:
            raise Lost(str(error)) from error
        return event

    def header(self, name: bytes) -> bytes:
        """The value of a header (its name in lower case), b"" where there is none."""
        return next((value for known, value in self.headers if known.lower() == name), b"")
