"""The self-test of a running server: what a client relies on, asked over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from dacheng.errors import DachengError
from dacheng.serve.client import Client

_CHAT = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, "temperature": 0}


def check(client: Client) -> Iterator[tuple[str, str | None]]:
    """(what was asked, None or what was wrong) of each test, in order."""
    for test in (_health, _models, _chat, _stream, _completion, _tokens, _messages, _metrics, _errors, _limits):
        name = (test.__doc__ or "").partition(":")[0]
        try:
            test(client)
            yield name, None
        except (AssertionError, DachengError, KeyError, IndexError, TypeError, ValueError) as error:
            problem = error.problem if isinstance(error, DachengError) else f"{type(error).__name__} {error}".strip()
            yield name, problem


def _demand(holds: Any, problem: str) -> None:
    if not holds:
        raise AssertionError(problem)


def _model(client: Client) -> str:
    return client.json("GET", "/v1/models")["data"][0]["id"]


def _health(client: Client) -> None:
    """GET /health"""
    status, _, _ = client.request("GET", "/health", key="")
    _demand(status == 200, f"status {status}")


def _models(client: Client) -> None:
    """GET /v1/models, and one of them"""
    name = _model(client)
    _demand(client.json("GET", f"/v1/models/{name}")["id"] == name, "another model came back")


def _whole_chat(client: Client) -> Any:
    return client.json("POST", "/v1/chat/completions", _CHAT | {"model": _model(client)})


def _chat(client: Client) -> None:
    """a chat: usage, finish_reason"""
    found = _whole_chat(client)
    _demand(found["choices"][0]["finish_reason"] in ("stop", "length"), "no finish_reason")
    usage = found["usage"]
    _demand(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"], "usage does not add up")


def _stream(client: Client) -> None:
    """a streamed chat says the same: one id, one finish_reason, the role first"""
    events = list(client.events("/v1/chat/completions", _CHAT | {"model": _model(client), "stream": True}))
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    reasons = [c["finish_reason"] for event in events for c in event["choices"] if c["finish_reason"]]
    _demand(deltas[0].get("role") == "assistant", "the first delta has no role")
    _demand(len({event["id"] for event in events}) == 1, "the id changes")
    _demand(len(reasons) == 1, f"{len(reasons)} finish reasons")
    whole = _whole_chat(client)["choices"][0]["message"]["content"]
    said = "".join(delta.get("content") or "" for delta in deltas)
    _demand(said == (whole or ""), "streamed and whole text differ")


def _completion(client: Client) -> None:
    """a completion with log-probabilities of the prompt"""
    body = {"model": _model(client), "prompt": "The sun is", "max_tokens": 1, "logprobs": 1, "echo": True,
            "temperature": 0}  # fmt: skip
    choice = client.json("POST", "/v1/completions", body)["choices"][0]
    logprobs = choice["logprobs"]
    _demand(choice["text"].startswith("The sun is"), "the prompt is not echoed")
    _demand(logprobs["token_logprobs"][0] is None, "the first token has a probability")
    _demand(all(value <= 0 for value in logprobs["token_logprobs"][1:]), "a log-probability above 0")


def _tokens(client: Client) -> None:
    """tokenize and detokenize"""
    ids = client.json("POST", "/tokenize", {"prompt": "The sun is 大成.", "add_special_tokens": False})["tokens"]
    text = client.json("POST", "/detokenize", {"tokens": ids})["prompt"]
    _demand(text.strip() == "The sun is 大成.", f"came back as {text!r}")


def _messages(client: Client) -> None:
    """Anthropic's messages"""
    body = {"model": _model(client), "max_tokens": 8, "messages": _CHAT["messages"]}
    found = client.json("POST", "/v1/messages", body)
    _demand(found["type"] == "message" and found["stop_reason"], "no stop_reason")


def _metrics(client: Client) -> None:
    """GET /metrics"""
    _, _, raw = client.request("GET", "/metrics")
    _demand(b"vllm:num_requests_running" in raw, "no vllm:num_requests_running")


def _status(client: Client, body: Any, path: str = "/v1/chat/completions") -> tuple[int, Any]:
    status, _, raw = client.request("POST", path, body)
    return status, json.loads(raw)["error"]


def _errors(client: Client) -> None:
    """errors name the field: unknown model, unknown and malformed fields"""
    name = _model(client)
    wrong: list[tuple[dict[str, Any], int, str]] = [
        ({"model": "no such model"}, 404, "model"),
        ({"model": name, "no_such_field": 1}, 400, "no_such_field"),
        ({"model": name, "temperature": "hot"}, 400, "temperature"),
        ({"model": name, "messages": []}, 400, "messages"),
    ]
    for body, expected, field in wrong:
        status, error = _status(client, _CHAT | body)
        _demand(status == expected and error["param"] == field, f"{field}: status {status}, param {error['param']}")
    status, _, _ = client.request("POST", "/v1/chat/completions", raw=b"{")
    _demand(status == 400, f"half a JSON text: status {status}")


def _limits(client: Client) -> None:
    """limits: n, stops"""
    name = _model(client)
    for body, field in (({"n": 100000}, "n"), ({"stop": ["x"] * 1000}, "stop")):
        status, error = _status(client, _CHAT | {"model": name} | body)
        _demand(status == 400 and error["param"] == field, f"{field}: status {status}")


Report = Callable[[str], None]


def run_check(client: Client, report: Report) -> int:
    """Reports every test in a line and returns how many failed."""
    failed = 0
    for name, problem in check(client):
        report(f"{'ok    ' if problem is None else 'FAILED'} {name}" + (f": {problem}" if problem else ""))
        failed += problem is not None
    return failed
