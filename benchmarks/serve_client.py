"""The client of benchmarks/serve.py, in a process of its own: sends requests when they are due, notes when pieces come.

    python benchmarks/serve_client.py --url http://127.0.0.1:8000 < work.json

Plain sockets and the standard library, a connection a request, the same for every server. work.json: {"arrivals":
seconds, "bodies": what to post to /v1/completions, "at_once": how many at most}. Prints one JSON list, an object a
request: seconds after the start at which it was due, was sent, and got each piece of its text; the pieces and their
log-probabilities; the usage; the error if there was one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

LONGEST_S = 600.0  # that one answer may take


async def pieces_of(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The body of an answer: its chunks, or all that comes to the end."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status != 200:
        body = await reader.read(4096)
        raise RuntimeError(f"{status}: {body.decode('utf-8', 'replace')[:300]}")
    if b"transfer-encoding: chunked" not in head.lower():
        while piece := await reader.read(65536):
            yield piece
        return
    while size := int((await reader.readline()).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def ask(host: str, port: int, body: dict[str, Any], now: Any) -> dict[str, Any]:
    """Posts one request and follows its stream."""
    found: dict[str, Any] = {"sent": now(), "times": [], "texts": [], "logprobs": [], "usage": None}
    sent = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 22)
    try:
        writer.write(
            f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(sent)}\r\nConnection: close\r\n\r\n".encode()
            + sent
        )
        held = b""
        async for piece in pieces_of(reader):
            held += piece
            *events, held = held.split(b"\n\n")
            for event in events:
                if event.startswith(b"data: ") and not event.startswith(b"data: [DONE]"):
                    _note(found, json.loads(event[6:]), now())
    finally:
        writer.close()
    return found


def _note(found: dict[str, Any], event: dict[str, Any], now: float) -> None:
    if "error" in event:
        raise RuntimeError(str(event["error"])[:300])
    found["usage"] = event.get("usage") or found["usage"]
    for choice in event.get("choices", ()):
        if choice.get("text"):
            found["times"].append(now)
            found["texts"].append(choice["text"])
            found["logprobs"].append([])
        if choice.get("logprobs"):
            if not found["logprobs"]:  # a token before any text
                found["texts"].append("")
                found["times"].append(now)
                found["logprobs"].append([])
            found["logprobs"][-1].append(choice["logprobs"])


async def run(url: str, work: dict[str, Any]) -> list[dict[str, Any]]:
    place = urlsplit(url)
    host, port = place.hostname or "127.0.0.1", place.port or 80
    started, free = time.perf_counter(), asyncio.Semaphore(work["at_once"])

    def now() -> float:
        return time.perf_counter() - started

    async def one(due: float, body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(due - now())
        async with free:
            try:
                return {"due": due} | await asyncio.wait_for(ask(host, port, body, now), LONGEST_S)
            except (OSError, RuntimeError, ValueError, EOFError, TimeoutError) as error:
                return {"due": due, "error": f"{type(error).__name__}: {error}"}

    return await asyncio.gather(*map(one, work["arrivals"], work["bodies"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    args = parser.parse_args()
    print(json.dumps(asyncio.run(run(args.url, json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
