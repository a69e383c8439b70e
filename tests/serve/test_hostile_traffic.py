"""Clients that are slow, many, greedy or suddenly gone: none takes anything from the others for good."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import time
from pathlib import Path

import pytest
from serve_fakes import FakeEngine, chat_tokenizer, connected, eventually, running, served, talk

from dacheng.serve.client import Client
from dacheng.serve.limits import Limits
from dacheng.serve.server import bind

pytest.importorskip("uvicorn")

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
KEY = "a-secret-key"
HEAD = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: a-secret-key\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def url():
    limits = Limits(body_bytes=100_000, body_s=0.5)
    with running(served(FakeEngine(chat_tokenizer())), keys=[KEY], limits=limits, header_s=0.5) as found:
        yield found


@pytest.fixture(scope="module")
def client(url):
    return Client(url, KEY)


def test_pieces_are_sent_at_once():
    """asyncio leaves Nagle's algorithm on where a socket does not name its protocol: 40 ms for every token."""
    with bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_bodies_that_are_too_large(url, client):
    status, answer = talk(url, HEAD + b"Content-Length: 10000000\r\n\r\n")
    assert status == 413 and b"connection: close" in answer.lower()
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    status, _ = talk(url, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 2)
    assert status == 413


def test_slow_heads_and_slow_bodies(url, client):
    with connected(url) as slow:
        slow.settimeout(5)
        slow.sendall(b"POST /tokenize HTTP/1.1\r\nHost: loc")
        began = time.monotonic()
        assert slow.recv(100) == b"" and time.monotonic() - began < 3  # closed
    status, answer = talk(url, HEAD + b'Content-Length: 100\r\n\r\n{"pro')
    assert status == 408 and b"x-should-retry: false" in answer
    assert client.json("POST", "/tokenize", {"prompt": "the cat"})["count"] > 0


def test_a_connection_in_use_is_not_closed(url):
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rsplit(":", 1)[1]), timeout=5)
    headers = {"X-Api-Key": KEY, "Content-Type": "application/json"}
    for _ in range(4):
        connection.request("POST", "/tokenize", '{"prompt": "the cat"}', headers)
        assert json.loads(connection.getresponse().read())["count"] > 0
        time.sleep(0.3)
    connection.close()


def test_a_client_that_does_not_read_is_left():
    engine = FakeEngine(chat_tokenizer(), "the cat " * 4000)
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 60000, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with running(served(engine, max_context=1 << 17), limits=Limits(send_s=0.3), small=True) as url:
        lazy = socket.socket()
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        lazy.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert eventually(lambda: engine.running == 1)
        assert eventually(lambda: engine.running == 0 and engine.cancelled == 1)
        lazy.close()


@pytest.mark.slow
def test_five_hundred_clients_on_a_queue_of_64():
    engine = FakeEngine(chat_tokenizer(), "the cat", pause_s=0.01, room=8, max_waiting=64)
    body = json.dumps(CHAT).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    raw = head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def ask(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(raw)
        answer = await reader.read()
        writer.close()
        return int(answer.split(b" ")[1])

    async def crowd(port):
        return await asyncio.gather(*[ask(port) for _ in range(500)])

    with running(served(engine)) as url:
        statuses = asyncio.run(crowd(int(url.rsplit(":", 1)[1])))
        assert set(statuses) == {200, 429} and statuses.count(200) >= 72
        assert engine.running == engine.waiting == 0 and engine.cancelled == 0


@pytest.mark.slow
def test_many_small_requests_leave_no_memory_behind():
    engine = FakeEngine(chat_tokenizer(), "the cat")
    bodies = [json.dumps(CHAT | more) for more in ({}, {"stream": True}, {"n": 2}, {"temperature": "hot"})]
    headers = {"Content-Type": "application/json"}

    def ask(times):
        for k in range(times):
            connection.request("POST", "/v1/chat/completions", bodies[k % len(bodies)], headers)
            connection.getresponse().read()
            engine.asked.clear()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    with running(served(engine)) as url:
        connection = http.client.HTTPConnection("127.0.0.1", int(url.rsplit(":", 1)[1]), timeout=10)
        before, fds = ask(500), len(os.listdir("/proc/self/fd"))
        assert ask(4500) - before < 4 << 20
        assert len(os.listdir("/proc/self/fd")) <= fds and engine.running == 0  # an earlier test's may close meanwhile
        connection.close()


def test_disconnects_at_any_moment_leave_nothing_behind():
    engine = FakeEngine(chat_tokenizer(), "the cat " * 20, pause_s=0.005, room=4)
    body = json.dumps(CHAT | {"stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    raw = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with running(served(engine)) as url:
        before = len(os.listdir("/proc/self/fd"))
        for k in range(40):
            with connected(url) as found:
                found.sendall(raw[: len(raw) * (k % 8 + 1) // 8])
                time.sleep(0.004 * (k % 5))
        assert eventually(lambda: engine.running == engine.waiting == 0)
        assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
        assert Client(url).json("POST", "/v1/chat/completions", CHAT)["choices"][0]["finish_reason"] == "stop"
