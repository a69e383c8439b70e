"""`dacheng serve --processes N` as processes: which one answers, kills, drains, refusals, and what is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from adapter_fakes import drawn
from serve_fakes import eventually

from dacheng.errors import DachengError
from dacheng.formats.model_directory import load_model
from dacheng.formats.peft import write_adapter
from dacheng.serve.check import run_check
from dacheng.serve.client import Client

pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.process, pytest.mark.slow]

LONG = {"model": "tiny", "prompt": "the cat", "max_tokens": 450, "temperature": 0, "ignore_eos": True}
SHORT = LONG | {"max_tokens": 8}


class Fleet:
    """A router as a user starts it."""

    def __init__(self, *words, processes=2, environment=None):
        command = [sys.executable, "-m", "dacheng.cli", "serve", "--port", "0", "--processes", str(processes), *words]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | (environment or {})
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stderr.readline, "")))
        self._reader.daemon = True
        self._reader.start()
        self.said = self.process.stdout.readline()
        found = re.search(r"http://\S+", self.said)
        assert found, (self.said, self.lines)
        self.url = found[0]
        self.client = Client(self.url)

    def children(self) -> list[int]:
        return children(self.process.pid)

    def ask(self, body=SHORT, key=None):
        return Client(self.url, key).json("POST", "/v1/completions", body)["choices"][0]["text"]

    def metrics(self) -> str:
        return self.client.request("GET", "/metrics")[2].decode()

    def health(self):
        status, _, raw = self.client.request("GET", "/health")
        return status, json.loads(raw)

    def close(self):
        left = self.children()
        self.process.kill()
        self.process.wait()
        self._reader.join(5)
        assert eventually(lambda: not any(alive(pid) for pid in left)), "a process was left behind"


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


@contextlib.contextmanager
def fleet(directory, *words, **more):
    found = Fleet("--model", f"tiny={directory}", *words, **more)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def pair(tiny_directory):
    with fleet(tiny_directory) as found:
        yield found


def test_a_router_answers_as_one_server(pair):
    lines: list[str] = []
    assert run_check(Client(pair.url), lines.append) == 0, lines
    assert pair.health() == (200, {"status": "ok", "workers": ["ready", "ready"]})
    whole = pair.ask(LONG)
    events = list(pair.client.events("/v1/completions", LONG | {"stream": True}))
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == whole
    status, headers, raw = pair.client.request("GET", "/v1/models/nothing")
    assert status == 404 and json.loads(raw)["error"]["param"] == "model" and headers["x-request-id"]
    assert headers["x-content-type-options"] == "nosniff" and list(headers).count("date") == 1
    status, _, raw = pair.client.request("POST", "/v1/completions", raw=b"{")
    assert status == 400
    assert pair.client.request("GET", "/")[0] == 200 and pair.client.request("DELETE", "/health")[0] == 405
    assert pair.client.request("HEAD", "/health")[0] == 200


def test_neither_keys_nor_models_are_visible_to_others(pair):
    for pid in pair.children():
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        assert words[1:] == ["-m", "dacheng.serve.worker", ""]
    assert not any("the cat" in line or "Traceback" in line for line in pair.lines)


def test_requests_are_spread_and_logged_once_with_their_client(pair):
    time.sleep(0.2)  # lines of what was asked before
    before = len(pair.lines)
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: pair.ask(), range(40)))
    assert len(set(texts)) == 1
    assert eventually(lambda: len(pair.lines) >= before + 40)
    logged = [json.loads(line) for line in pair.lines[before:] if '"path"' in line]
    assert len(logged) == 40 and {entry["client"] for entry in logged} == {"127.0.0.1"}
    assert len({entry["request_id"] for entry in logged}) == 40
    running = [line for line in pair.metrics().splitlines() if line.startswith("vllm:num_requests_running{")]
    assert len(running) == 2 and all('worker="' in line and line.endswith(" 0.0") for line in running)


def test_counts_are_sums(pair):
    def count(name):
        (line,) = [line for line in pair.metrics().splitlines() if line.startswith(name)]
        return float(line.split()[-1])

    name = 'vllm:generation_tokens_total{model_name="tiny"}'
    before, finished = count(name), count('vllm:time_to_first_token_seconds_count{model_name="tiny"}')
    for _ in range(6):
        pair.ask()
    assert count(name) == before + 6 * 8
    assert count('vllm:time_to_first_token_seconds_count{model_name="tiny"}') == finished + 6
    assert count("dacheng_router_workers") == 2


def test_a_prompt_goes_where_its_beginning_was_computed(pair):
    def cached(text):
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 2, "temperature": 0}
        usage = pair.client.json("POST", "/v1/chat/completions", body)["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]

    for k in range(6):
        text = f"{k} " + "the cat sat on the mat and " * 14
        assert cached(text)[0] < 32
        for more in ("", "once more", "and again"):  # without affinity one in two would miss
            pair.ask()  # turns go on meanwhile
            found, prompt = cached(text + more)
            assert found >= prompt - 64, (found, prompt)


def test_a_client_that_goes_is_gone_within_a_step(pair):
    streams = [pair.client.events("/v1/completions", LONG | {"n": 4, "stream": True}) for _ in range(4)]
    for stream in streams:
        next(stream)
    for stream in streams:
        stream.close()
    idle = re.compile(r"vllm:num_requests_(running|waiting)\{.*\} [^0]")
    assert eventually(lambda: not idle.search(pair.metrics()), 3)


def test_a_killed_process_loses_no_request_that_had_not_begun(pair):
    (first, second), expected = pair.children(), pair.ask(LONG)
    broken: list[str] = []

    def ask(k):
        if k % 2:
            return pair.ask(LONG) == expected
        said = ""
        try:
            for event in pair.client.events("/v1/completions", LONG | {"stream": True}):
                said += "".join(choice["text"] for choice in event["choices"])
        except DachengError as error:
            broken.append(str(error))
            return expected.startswith(said)
        return said == expected

    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(ask, k) for k in range(30)]
        time.sleep(0.4)
        os.kill(first, signal.SIGKILL)
        assert all(future.result(60) for future in futures)
    assert all("broke" in said for said in broken) and len(broken) <= 12
    assert eventually(lambda: pair.health()[1]["status"] == "ok", 30)
    assert second in pair.children() and first not in pair.children() and len(pair.children()) == 2
    assert "dacheng_router_restarts_total 1.0" in pair.metrics()
    assert any("ended with -9" in line for line in pair.lines)
    before = pair.children()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not any(alive(pid) for pid in before))
    assert pair.ask(LONG) == expected and set(pair.children()).isdisjoint(before)  # who asks meanwhile waits


def test_nothing_outlives_a_killed_router(pair):
    workers, stream = pair.children(), pair.client.events("/v1/completions", LONG | {"stream": True})
    next(stream)
    pair.process.kill()
    assert workers and eventually(lambda: not any(alive(pid) for pid in workers), 5)
    stream.close()


def test_full_queues_and_two_interrupts(tiny_directory):
    with fleet(tiny_directory, "--max-batch", "1", "--max-waiting", "2") as found:
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: found.client.request("POST", "/v1/completions", LONG), range(24)))
        refused = [(headers, raw) for status, headers, raw in answers if status == 429]
        assert refused and all(status in (200, 429) for status, _, _ in answers)
        assert sum(status == 200 for status, _, _ in answers) >= 4  # as many as both have room for, at least
        assert all(int(headers["retry-after"]) >= 1 for headers, _ in refused)
        assert all(json.loads(raw)["error"]["code"] == "queue_full" for _, raw in refused)

        workers, stream = found.children(), found.client.events("/v1/completions", LONG | {"stream": True, "n": 2})
        next(stream)
        found.process.send_signal(signal.SIGINT)
        assert eventually(lambda: any("stopping" in line for line in found.lines))
        time.sleep(0.6)
        began = time.monotonic()
        found.process.send_signal(signal.SIGINT)
        assert found.process.wait(10) in (0, 130) and time.monotonic() - began < 5
        assert not any(alive(pid) for pid in workers)
        stream.close()
    assert not any("Traceback" in line for line in found.lines)


def test_keys_tenants_and_a_stop_that_lets_answers_finish(tiny_directory):
    keys = {"DACHENG_API_KEY": "the-key-of-one,the-key-of-two"}
    with fleet(tiny_directory, "--drain", "20", environment=keys) as found:
        assert found.client.request("GET", "/v1/models")[0] == 401 and found.client.request("GET", "/health")[0] == 200
        body = LONG | {"prompt": "the cat sat on the mat and " * 14, "max_tokens": 1}

        def cached(key):
            usage = Client(found.url, key).json("POST", "/v1/completions", body)["usage"]
            return usage["prompt_tokens_details"]["cached_tokens"]

        assert cached("the-key-of-one") == 0 and cached("the-key-of-one") > 0 and cached("the-key-of-two") == 0
        workers = found.children()
        for pid in workers:
            assert b"the-key" not in Path(f"/proc/{pid}/environ").read_bytes()

        client = Client(found.url, "the-key-of-one")
        streams = [client.events("/v1/completions", LONG | {"stream": True, "n": 4}) for _ in range(3)]
        for stream in streams:
            next(stream)
        for pid in [found.process.pid, *workers]:  # a supervisor may signal all of them
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(DachengError):
            Client(found.url, timeout_s=2).json("GET", "/v1/models")
        for stream in streams:
            reasons = [c["finish_reason"] for event in stream for c in event["choices"] if c["finish_reason"]]
            assert reasons == ["length"] * 4
        assert found.process.wait(15) == 0
        assert not any(alive(pid) for pid in workers)
    assert not any("Traceback" in line for line in found.lines)


def test_adapters_are_loaded_into_all_processes_and_into_their_successors(tiny_directory, tmp_path):
    model = load_model(tiny_directory, dtype="float32").model
    write_adapter(tmp_path / "late", drawn(model, 2), model)
    with fleet(tiny_directory, "--adapters-dir", str(tmp_path)) as found:

        def texts():
            return {found.ask(SHORT | {"model": "late"}) for _ in range(4)}  # by turns

        def tell(route, **body):
            return found.client.request("POST", f"/v1/{route}_lora_adapter", body)[0]

        assert tell("load", lora_name="late", lora_path="nowhere") == 400
        assert tell("load", lora_name="late", lora_path="late") == 200
        before = texts()
        assert len(before) == 1 and before != {found.ask(SHORT)}
        os.kill(found.children()[0], signal.SIGKILL)
        assert eventually(lambda: found.health()[1]["status"] != "ok", 10)
        assert eventually(lambda: found.health()[1]["status"] == "ok", 30)
        assert texts() == before
        assert tell("unload", lora_name="late") == 200 and tell("unload", lora_name="late") == 404
        assert found.client.request("POST", "/v1/completions", SHORT | {"model": "late"})[0] == 404


def test_a_model_that_does_not_start_is_said_once(tiny_directory):
    command = [sys.executable, "-m", "dacheng.cli", "serve", "--port", "0", "--processes"]
    words = [*command, "2", "--model", str(tiny_directory), "--max-context", "9999"]
    run = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and run.stderr.count("max_context") == 1 and "Traceback" not in run.stderr
    run = subprocess.run([*command, "0", "--model", str(tiny_directory)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and "--processes" in run.stderr
