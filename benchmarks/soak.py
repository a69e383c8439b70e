"""Mixed random traffic against `dacheng serve` for some minutes: does anything grow, leak or break?

    python benchmarks/soak.py --model models/smollm2 --minutes 20
    python benchmarks/soak.py --model models/smollm2 --minutes 20 -- --processes 2 --kv-dtype int8    # flags of serve

Clients at once chat, stream, walk away in the middle, ask for JSON by a schema, embeddings, log-probabilities, nonsense
and too much. Every ten seconds a line with the server's resident memory (of all its processes), file descriptors and
share of the cache in use. Twice the traffic stops, after the warm-up and at the end: what is held then has to be the
same. The last line is the verdict; the exit code is 1 where it is not "sound".
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dacheng.errors import DachengError
from dacheng.serve.client import Client

SAMPLE_S = 10.0
WARM_UP = 0.25  # of the time: allocators and caches fill
MOST_GROWTH_MB = 32.0  # of resident memory, from the warm-up to the end, both idle
WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "rain", "fell", "over", "hills", "and", "someone", "大成"]
SCHEMA = {
    "type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["ok", "n"], "additionalProperties": False,
}  # fmt: skip


# --- the traffic ------------------------------------------------------------------------------------------------------
class Traffic:
    """Threads that ask at random until they are told to stop; `pause` lets all that runs finish."""

    def __init__(self, url: str, clients: int, seed: int) -> None:
        self.url, self.done, self.wrong = url, Counter[str](), Counter[str]()
        card = Client(url).json("GET", "/v1/models")["data"][0]
        self.model = card["id"]
        self.words = min(160, (card["max_model_len"] - 264) // 6)  # six tokens a word is more than any tokenizer takes
        self._run, self._end = threading.Event(), threading.Event()
        self._busy = [threading.Lock() for _ in range(clients)]
        self._threads = [
            threading.Thread(target=self._drive, args=(random.Random(seed + k), lock), daemon=True)
            for k, lock in enumerate(self._busy)
        ]
        self._run.set()
        for thread in self._threads:
            thread.start()

    def pause(self) -> None:
        self._run.clear()
        for lock in self._busy:
            with lock:
                pass

    def go_on(self) -> None:
        self._run.set()

    def stop(self) -> None:
        self._end.set()
        self._run.set()
        for thread in self._threads:
            thread.join(120)

    def _drive(self, rng: random.Random, lock: threading.Lock) -> None:
        kinds: list[Callable[[Client, random.Random], None]] = [
            self._chat, self._chat, self._stream, self._stream, self._walk_away, self._walk_away, self._schema,
            self._embed, self._score, self._nonsense, self._too_much, self._tokens,
        ]  # fmt: skip
        while not self._end.is_set():
            self._run.wait()
            if self._end.is_set():
                return
            with lock:
                kind = rng.choice(kinds)
                name = kind.__name__.strip("_")
                try:
                    kind(Client(self.url, timeout_s=120), rng)
                    self.done[name] += 1
                except AssertionError as error:
                    self.wrong[f"{name}: {error}"] += 1
                except (DachengError, ValueError, KeyError, IndexError) as error:
                    problem = error.problem if isinstance(error, DachengError) else repr(error)
                    if "(429)" in problem:
                        self.done["refused: the queue is full"] += 1
                        time.sleep(rng.random())
                    else:
                        self.wrong[f"{name}: {problem[:120]}"] += 1

    def _text(self, rng: random.Random) -> str:
        begin = (WORDS * 9)[: rng.choice([0, self.words // 4, self.words // 2])]  # some begin alike
        return " ".join([*begin, *rng.choices(WORDS, k=rng.randint(1, max(1, self.words // 2)))])

    def _body(self, rng: random.Random, **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": self._text(rng)}]
        sampling = {"temperature": rng.choice([0, 0.7, 1.3]), "max_tokens": rng.randint(1, 48)}
        return {"model": self.model, "messages": messages, **sampling, **more}

    def _chat(self, client: Client, rng: random.Random) -> None:
        found = client.json("POST", "/v1/chat/completions", self._body(rng, n=rng.choice([1, 1, 2])))
        assert all(choice["finish_reason"] in ("stop", "length") for choice in found["choices"]), "finish_reason"

    def _stream(self, client: Client, rng: random.Random) -> None:
        reasons = [
            choice["finish_reason"]
            for event in client.events("/v1/chat/completions", self._body(rng, stream=True))
            for choice in event["choices"]
        ]
        assert reasons[-1] in ("stop", "length"), f"a stream ends with {reasons[-1]}"

    def _walk_away(self, client: Client, rng: random.Random) -> None:
        events = client.events("/v1/chat/completions", self._body(rng, stream=True) | {"max_tokens": 200})
        for _ in range(rng.randint(0, 12)):
            next(events, None)
        events.close()

    def _schema(self, client: Client, rng: random.Random) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        found = client.json("POST", "/v1/chat/completions", self._body(rng, response_format=form) | {"max_tokens": 64})
        choice = found["choices"][0]
        if choice["finish_reason"] == "stop":
            assert set(json.loads(choice["message"]["content"])) == {"ok", "n"}, "the schema was not kept to"

    def _embed(self, client: Client, rng: random.Random) -> None:
        texts = [self._text(rng) for _ in range(rng.randint(1, 4))]
        found = client.json("POST", "/v1/embeddings", {"model": self.model, "input": texts})
        assert len(found["data"]) == len(texts), "vectors are missing"

    def _score(self, client: Client, rng: random.Random) -> None:
        body = {"model": self.model, "prompt": self._text(rng), "echo": True, "logprobs": 1, "max_tokens": 1}
        client.json("POST", "/v1/completions", body)

    def _tokens(self, client: Client, rng: random.Random) -> None:
        client.json("POST", "/tokenize", {"prompt": self._text(rng)})

    def _nonsense(self, client: Client, rng: random.Random) -> None:
        body: dict[str, Any] = rng.choice(
            [{"temperature": "hot"}, {"no_such_field": 1}, {"messages": []}, {"model": "nobody"}, {"n": 10**6}]
        )
        raw = None if rng.random() < 0.7 else b'{"messages": [' * rng.randint(1, 2000)
        asked = None if raw else self._body(rng) | body
        status, _, _ = client.request("POST", "/v1/chat/completions", asked, raw=raw)
        assert status in (400, 404), f"nonsense gets {status}"

    def _too_much(self, client: Client, rng: random.Random) -> None:
        status, _, _ = client.request("POST", "/v1/completions", {"model": self.model, "prompt": [1] * 300_000})
        assert status in (400, 413), f"too long a prompt gets {status}"


# --- the server -------------------------------------------------------------------------------------------------------
class Server:
    """`dacheng serve` and the processes it starts."""

    def __init__(self, model: str, words: list[str]) -> None:
        command = [sys.executable, "-m", "dacheng.cli", "serve", "--model", model, "--port", "0", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.traces = 0
        threading.Thread(target=self._watch, daemon=True).start()
        assert self.process.stdout is not None
        found = re.search(r"http://\S+", self.process.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start")
        self.url = found[0]

    def _watch(self) -> None:
        for line in self.process.stderr or ():
            if not line.startswith('{"time"'):  # an access line
                print(line, end="", file=sys.stderr)
                self.traces += "Traceback" in line

    @property
    def pids(self) -> list[int]:
        pid = self.process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def sample(self) -> dict[str, float]:
        """Resident megabytes, file descriptors, and the share of the cache in use."""
        pids = self.pids
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
        fds = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
        text = Client(self.url).request("GET", "/metrics")[2].decode()
        used = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:kv_cache_usage_perc{")]
        return {"rss_mb": round(pages * 4096 / 1e6, 1), "fds": fds, "cache_used": round(sum(used), 4)}

    def idle(self) -> dict[str, float]:
        """As `sample`, once connections are closed and cancelled requests have gone: the least of some seconds, for a
        router asks its processes how they are now and then."""
        time.sleep(2.0)
        found = []
        for _ in range(6):
            time.sleep(0.5)
            found.append(self.sample())
        return found[-1] | {"fds": min(sample["fds"] for sample in found)}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def slope(samples: list[tuple[float, float]]) -> float:
    """Of a line through (seconds, value), by the hour."""
    if len(samples) < 3:
        return 0.0
    return statistics.linear_regression(*zip(*samples)).slope * 3600


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("serve", nargs="*", help="after --: flags of dacheng serve")
    args = parser.parse_args()
    server = Server(args.model, args.serve)
    traffic = Traffic(server.url, args.clients, args.seed)
    began, seconds = time.monotonic(), args.minutes * 60
    idle: dict[str, float] | None = None
    memory: list[tuple[float, float]] = []
    while (now := time.monotonic() - began) < seconds:
        time.sleep(min(SAMPLE_S, seconds - now))
        now = time.monotonic() - began
        if idle is None and now >= seconds * WARM_UP:
            traffic.pause()
            idle = server.idle()
            print(json.dumps({"figure": "soak, idle after the warm-up", **idle}), flush=True)
            traffic.go_on()
            continue
        sample = server.sample()
        if idle is not None:
            memory.append((now, sample["rss_mb"]))
        print(json.dumps({"figure": "soak", "s": round(now), "done": traffic.done.total(), **sample}), flush=True)
    traffic.stop()
    end = server.idle()
    print(json.dumps({"figure": "soak, idle at the end", **end}), flush=True)
    health = Client(server.url).request("GET", "/health")[0]
    code = server.stop()
    assert idle is not None
    growth = round(end["rss_mb"] - idle["rss_mb"], 1)
    sound = (
        not traffic.wrong and not server.traces and end["fds"] <= idle["fds"] and health == 200 and code == 0
        and end["cache_used"] == idle["cache_used"] and growth <= MOST_GROWTH_MB
    )  # fmt: skip
    verdict = {
        "figure": "soak verdict", "sound": sound, "minutes": args.minutes, "clients": args.clients,
        "requests": traffic.done.total(), "by_kind": dict(traffic.done), "wrong": dict(traffic.wrong),
        "growth_mb": growth, "slope_mb_per_hour": round(slope(memory), 1),
        "fds": [idle["fds"], end["fds"]], "cache_used": [idle["cache_used"], end["cache_used"]],
        "tracebacks": server.traces, "health": health, "exit": code,
    }  # fmt: skip
    print(json.dumps(verdict))
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
