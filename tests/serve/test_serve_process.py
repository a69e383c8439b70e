"""`dacheng serve` and `dacheng chat` as processes: signals, drains, the self-test, keys."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from serve_fakes import FakeEngine, chat_tokenizer, eventually, running, served

from dacheng.errors import DachengError
from dacheng.serve.client import Client

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.process

LONG = {"model": "tiny", "prompt": "the cat", "max_tokens": 400, "temperature": 0, "ignore_eos": True, "stream": True}


@contextlib.contextmanager
def server(*words, environment=None):
    """(process, url)."""
    command = [sys.executable, "-m", "dacheng.cli", "serve", "--port", "0", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | (environment or {})
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True)
    reader.start()
    try:
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        assert found, (said, lines)
        process.said, process.lines = said + process.stdout.readline() + process.stdout.readline(), lines
        yield process, found[0]
    finally:
        process.kill()
        process.wait()
        reader.join(5)


def cli(*words, **more):
    return subprocess.run([sys.executable, "-m", "dacheng.cli", *words], capture_output=True, text=True, **more)


def test_serve_check_chat_and_drain(tiny_directory):
    with server("--model", str(tiny_directory), "--name", "tiny", "--drain", "20") as (process, url):
        assert f"curl {url}/v1/chat/completions" in process.said and '"model": "tiny"' in process.said
        checked = cli("serve", "--check", url)
        assert checked.returncode == 0 and "all is well" in checked.stdout, checked.stdout
        chatted = cli("chat", "--model", url, "--temperature", "0", "--max-tokens", "8", input="hello\n/reset\nhello\n")
        here = cli("chat", "--model", str(tiny_directory), "--temperature", "0", "--max-tokens", "8", input="hello\n")
        first, second = chatted.stdout[: len(chatted.stdout) // 2], chatted.stdout[len(chatted.stdout) // 2 :]
        assert chatted.returncode == here.returncode == 0 and first == second == here.stdout and first.strip()

        stream = Client(url).events("/v1/completions", LONG)
        next(stream)
        process.send_signal(signal.SIGTERM)  # what is running finishes, what is new is refused
        time.sleep(0.2)
        with pytest.raises(DachengError):
            Client(url, timeout_s=2).json("GET", "/v1/models")
        tokens = [choice["text"] for event in stream for choice in event["choices"]]
        assert len(tokens) > 300
        assert process.wait(10) == 0
    assert any('"path": "/v1/completions"' in line and '"status": 200' in line for line in process.lines)
    assert not any("the cat" in line or "Traceback" in line for line in process.lines)


def test_the_second_signal_ends_at_once(tiny_directory):
    endless = LONG | {"n": 16, "max_tokens": 490}
    with server("--model", str(tiny_directory), "--name", "tiny", "--max-batch", "1") as (process, url):
        stream = Client(url).events("/v1/completions", endless)
        next(stream)
        for _ in range(2):  # to the process and to its group: that is one signal
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        time.sleep(0.6)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 130 and time.monotonic() - began < 5
        stream.close()
    assert not any("Traceback" in line for line in process.lines)


def test_keys_names_and_wrong_usage(tiny_directory, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("the-key-of-ours\n")
    with server("--model", str(tiny_directory), "--api-key-file", str(keys)) as (process, url):
        with pytest.raises(DachengError, match="401"):
            Client(url).json("GET", "/v1/models")
        assert Client(url, "the-key-of-ours").json("GET", "/v1/models")["data"][0]["id"] == "tiny"
        assert "Authorization: Bearer KEY" in process.said and "the-key" not in process.said
        assert cli("serve", "--check", url, "--api-key-file", str(keys)).returncode == 0
        taken = cli("serve", "--model", str(tiny_directory), "--port", url.rsplit(":", 1)[1])
        assert taken.returncode == 2 and "--port" in taken.stderr
    assert cli("serve", "--check", url).returncode == 1
    beyond = cli("serve", "--model", str(tiny_directory), "--host", "0.0.0.0", "--port", "0")
    assert beyond.returncode == 2 and "key" in beyond.stderr
    assert cli("serve").returncode == 2 and cli("serve", "http://x").returncode == 2
    short = cli("serve", "--model", str(tiny_directory), "--port", "0", "--max-context", "9999")
    assert short.returncode == 2 and "max_context" in short.stderr


def test_ctrl_c_stops_an_answer_and_not_the_chat():
    engine = FakeEngine(chat_tokenizer(), "the cat " * 100, pause_s=0.02)
    with running(served(engine)) as url:
        command = [sys.executable, "-m", "dacheng.cli", "chat", "--model", url]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        process.stdin.write("hello\n")
        process.stdin.flush()
        assert eventually(lambda: engine.tokens > 20, 20)
        process.send_signal(signal.SIGINT)
        assert eventually(lambda: engine.running == 0 and engine.cancelled == 1)
        engine.say = lambda prompt, params: "the end"
        said, _ = process.communicate("/system be kind\nagain\n", timeout=20)
        assert process.returncode == 0
    first, second = said.splitlines()
    assert first.startswith("the cat") and first.endswith("[stopped]") and second == "the end"
    assert "be kind" in engine.tokenizer.decode(engine.asked[-1][0])
    assert "hello" not in engine.tokenizer.decode(engine.asked[-1][0])
