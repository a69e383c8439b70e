"""What a server refuses, in which words, and that it goes on after all of it."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_fakes import FakeEngine, chat_tokenizer, eventually, running, served, talk

from dacheng.errors import UsageError
from dacheng.serve.check import run_check
from dacheng.serve.client import Client
from dacheng.serve.keys import Keys
from dacheng.serve.limits import Limits
from dacheng.serve.page import PAGE_PATHS

pytest.importorskip("uvicorn")

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "secret words"}]}
TEXT = {"model": "tiny", "prompt": "secret words"}
KEY, CHATS = "a-secret-key", "/v1/chat/completions"
LIMITS = Limits(body_bytes=100_000, body_s=0.5, n=4, prompts=4, stops=4, top_logprobs=20)


@pytest.fixture(scope="module")
def engine():
    return FakeEngine(chat_tokenizer(), "the cat sat")


@pytest.fixture(scope="module")
def url(engine):
    with running(served(engine), keys=[KEY, "another-key"], limits=LIMITS, header_s=0.5) as found:
        yield found


@pytest.fixture(scope="module")
def client(url):
    return Client(url, KEY)


def refused(client, path, body):
    status, headers, raw = client.request("POST", path, body)
    assert status >= 400, raw
    error = json.loads(raw)["error"]
    assert headers["x-request-id"] and set(error) == {"message", "type", "param", "code"}
    return status, error


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
MESSAGES = "messages[0]"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"no_such_field": 1}, "no_such_field"),
        ({"messages": None}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hello"]}, MESSAGES),
        ({"messages": [{"role": "wizard", "content": "x"}]}, f"{MESSAGES}.role"),
        ({"messages": [{"role": "user"}]}, f"{MESSAGES}.content"),
        ({"messages": [{"role": "user", "content": 1}]}, f"{MESSAGES}.content"),
        ({"messages": [{"role": "user", "content": "x", "colour": "red"}]}, f"{MESSAGES}.colour"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
         f"{MESSAGES}.content[0].type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, f"{MESSAGES}.tool_call_id"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": 500}, "max_tokens"),  # more than the context leaves
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"stop": ["x"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 300}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"seed": 2**70}, "seed"),
        ({"logit_bias": {"foo": 0}}, "logit_bias"),
        ({"logit_bias": {"5": 1000}}, "logit_bias.5"),
        ({"logit_bias": {"5": None}}, "logit_bias.5"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"other": True}}, "stream_options.other"),
        ({"structured_outputs": {"grammar": "start: /a+/"}, "tools": [TOOL]}, "structured_outputs.grammar"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_decoding_backend": "x"}, "guided_decoding_backend"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 1}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice.function"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
         "tool_choice.allowed_tools.tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tools": [TOOL | {"function": {"name": "f", "parameters": {"type": "array"}}}], "tool_choice": "required"},
         "tools"),
        ({"tool_choice": "auto!"}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL | {"function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL | {"function": {"name": "f", "strict": "yes"}}]}, "tools[0].function.strict"),
        ({"tools": [TOOL], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"audio": {}}, "audio"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"store": True}, "store"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"functions": []}, "functions"),
        ({"prediction": {"type": "content"}}, "prediction"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"continue_final_message": True}, "continue_final_message"),
    ],
)  # fmt: skip
def test_a_chat_that_is_refused_names_the_field(client, more, param):
    status, error = refused(client, "/v1/chat/completions", CHAT | more)
    assert status == 400 and error["param"] == param and error["message"].startswith(param)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": None}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": [[]]}, "prompt[0]"),
        ("/v1/completions", {"prompt": [1, "x"]}, "prompt[0]"),
        ("/v1/completions", {"prompt": [[10**6]]}, "prompt[0]"),
        ("/v1/completions", {"prompt": [[-1]]}, "prompt[0]"),
        ("/v1/completions", {"prompt": ["x"] * 5}, "prompt"),
        ("/v1/completions", {"prompt": ["x"] * 3, "n": 2}, "n"),
        ("/v1/completions", {"max_tokens": 0}, "max_tokens"),
        ("/v1/completions", {"suffix": "x"}, "suffix"),
        ("/v1/completions", {"best_of": 3}, "best_of"),
        ("/v1/completions", {"logprobs": 21}, "logprobs"),
        ("/v1/completions", {"prompt": "\ud800"}, "prompt"),
        ("/v1/embeddings", {"input": None, "prompt": None}, "input"),
        ("/v1/embeddings", {"input": "x", "prompt": None, "dimensions": 2}, "dimensions"),
        ("/v1/embeddings", {"input": "x", "prompt": None, "encoding_format": "int8"}, "encoding_format"),
        ("/v1/embeddings", {"input": [[5] * 600], "prompt": None}, "input[0]"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/detokenize", {"tokens": [10**6], "prompt": None}, "tokens[0]"),
        ("/detokenize", {"prompt": None}, "tokens"),
    ],
)
def test_other_routes_name_the_field(client, path, body, param):
    status, error = refused(client, path, TEXT | body)
    assert status == 400 and error["param"] == param


def test_half_a_surrogate_in_a_chat(client):
    status, _ = refused(client, "/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "\ud800"}]})
    assert status == 400
    status, _ = refused(client, "/v1/chat/completions", CHAT | {"model": "\ud800"})
    assert status == 404


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 50_000, b'{"temperature": NaN}']
)
def test_what_is_no_json_object(client, raw):
    for path in ("/v1/chat/completions", "/v1/messages", "/tokenize"):
        status, _, answer = client.request("POST", path, raw=raw)
        assert status == 400 and json.loads(answer)["error"]["message"]


def test_the_key(url, client):
    wrong = Client(url, "wrong-key-wrong")
    for method, path in [
        ("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/tokenize"),
        ("GET", "/openapi.json"),
        ("GET", "/version"), ("GET", "/no/such/route"), ("POST", "/v1/messages"), ("GET", "/tokenizer_info"),
    ]:  # fmt: skip
        for key in ("wrong-key-wrong", "", KEY + "x", KEY[:-1]):
            status, headers, raw = wrong.request(method, path, CHAT if method == "POST" else None, key=key)
            error = json.loads(raw)["error"]
            assert status == 401 and error["type"] == "authentication_error", path
    status, _, raw = Client(url).request("GET", "/health")
    assert status == 200 and json.loads(raw) == {"status": "ok"}
    assert Client(url, "another-key").json("GET", "/v1/models")["data"]
    for path in PAGE_PATHS:
        status, headers, raw = Client(url).request("GET", path)
        assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
        assert b"innerHTML" not in raw and b"://" not in raw.replace(b"http://www.w3.org", b"")


def test_keys_are_read_and_not_shown(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\n\n  one-of-the-keys \nthe-other-key\n")
    keys = Keys.read(file, {})
    assert keys.admit({"authorization": "Bearer one-of-the-keys"}) and keys.admit({"x-api-key": "the-other-key"})
    assert not keys.admit({}) and not keys.admit({"authorization": "Basic one-of-the-keys"})
    assert "one-of" not in repr(vars(keys))
    tenants = {keys.tenant({"x-api-key": key}) for key in ("one-of-the-keys", "the-other-key")}
    assert len(tenants) == 2 and None not in tenants and Keys().tenant({}) == ""
    assert Keys.read(None, {"DACHENG_API_KEY": "first-key-here, second-key"}).admit({"x-api-key": "second-key"})
    assert not Keys.read(None, {}) and Keys.read(None, {}).admit({})
    (tmp_path / "none").write_text("# nothing\n")
    with pytest.raises(UsageError, match="no key"):
        Keys.read(tmp_path / "none")
    with pytest.raises(UsageError) as caught:
        Keys(["short"])
    assert "short" not in str(caught.value).replace("too short", "")


def test_routes_methods_and_hosts(url, client):
    status, _, raw = client.request("GET", "/v1/nothing")
    assert status == 404 and json.loads(raw)["error"]["type"] == "not_found_error"
    status, headers, _ = client.request("GET", "/v1/chat/completions")
    assert status == 405 and "POST" in headers["allow"]
    status, headers, _ = client.request("OPTIONS", "/v1/chat/completions")
    assert status == 405 and not any(name.startswith("access-control") for name in headers)
    status, _ = talk(url, b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nX-Api-Key: a-secret-key\r\n\r\n")
    assert status == 403
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: a-secret-key\r\nContent-Type: text/plain\r\n"
    status, _ = talk(url, head + b"Content-Length: 2\r\n\r\n{}")
    assert status == 415


def test_the_log_has_a_line_and_no_content(client, caplog):
    with caplog.at_level(logging.INFO, "dacheng.access"):
        client.request("POST", "/v1/chat/completions", CHAT)
        _, headers, _ = client.request("POST", "/v1/chat/completions", CHAT | {"temperature": "secret words"})
        eventually(lambda: len(access_lines(caplog)) == 2)  # a line is written when the answer is out
    lines = access_lines(caplog)
    assert [line["status"] for line in lines] == [200, 400] and lines[1]["request_id"] == headers["x-request-id"]
    assert lines[0]["model"] == "tiny" and lines[0]["completion_tokens"] > 2 and lines[0]["prompt_tokens"] > 3
    everything = caplog.text
    assert "secret words" not in everything and KEY not in everything and "the cat" not in everything


def access_lines(caplog):
    """Those of chats: the line of an earlier test may still come."""
    lines = [json.loads(record.message) for record in caplog.records if record.name == "dacheng.access"]
    return [line for line in lines if line["path"] == CHATS]


def test_request_ids(url):
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: "
    assert b"mine-7" in talk(url, head + b"mine-7\r\n\r\n")[1]
    assert b"x-request-id: req_" in talk(url, head + b"a b{}\r\n\r\n")[1].lower()


def test_metrics(client, engine):
    client.request("POST", "/v1/chat/completions", CHAT)
    text = client.request("GET", "/metrics")[2].decode()
    for line in (
        'vllm:num_requests_running{model_name="tiny"} 0.0',
        'vllm:num_requests_waiting{model_name="tiny"} 0.0',
        'vllm:kv_cache_usage_perc{model_name="tiny"} 0.25',
        'vllm:prompt_tokens_total{model_name="tiny"} 7.0',
        f'vllm:generation_tokens_total{{model_name="tiny"}} {float(engine.tokens)}',
        'vllm:request_success_total{finished_reason="stop",model_name="tiny"}',
        'vllm:time_to_first_token_seconds_count{model_name="tiny"}',
        'vllm:inter_token_latency_seconds_bucket{le="0.001",model_name="tiny"}',
        'http_requests_total{handler="/v1/chat/completions",method="POST",status="200"}',
    ):
        assert line in text


def test_tokens(client, engine):
    found = client.json("POST", "/tokenize", {"prompt": "the cat", "return_token_strs": True})
    assert found["tokens"] == engine.tokenizer.encode("the cat") and len(found["token_strs"]) == found["count"]
    assert found["max_model_len"] == 512
    chat = client.json("POST", "/tokenize", CHAT)["tokens"]
    text = client.json("POST", "/detokenize", {"tokens": chat})["prompt"]
    assert text.startswith("<|im_start|>user\nsecret words<|im_end|>\n<|im_start|>assistant\n")
    info = client.json("GET", "/tokenizer_info")
    assert info["chat_template"] and info["eos_token_id"] == engine.tokenizer.eos_id
    assert client.json("GET", "/version")["version"]


def test_an_unhealthy_engine(client, engine, monkeypatch):
    monkeypatch.setattr(engine, "healthy", False)
    assert client.request("GET", "/health")[0] == 503


def test_a_failure_inside_is_500_without_its_words(client, engine, monkeypatch, caplog):
    def fails(prompt, params):
        raise ZeroDivisionError(" ".join(["secret", "words"]))

    monkeypatch.setattr(engine, "say", fails)
    for more in ({}, {"stream": True}, {"n": 3}):
        status, error = refused(client, "/v1/chat/completions", CHAT | more)
        assert status == 500 and error["type"] == "server_error" and "secret" not in error["message"]
    assert "ZeroDivisionError" in caplog.text and "secret words" not in caplog.text


def test_the_self_test_passes_and_sees_what_is_wrong(client, engine, monkeypatch):
    lines: list[str] = []
    assert run_check(client, lines.append) == 0, lines
    assert len(lines) == 10 and all(line.startswith("ok") for line in lines)
    said = iter(range(1000))
    monkeypatch.setattr(engine, "say", lambda prompt, params: f"the cat {next(said)}")
    lines.clear()
    assert run_check(client, lines.append) == 1 and any("differ" in line for line in lines if "FAILED" in line)
    lines.clear()
    assert run_check(Client("http://127.0.0.1:9", timeout_s=1), lines.append) == 10


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(["messages", "temperature", "n", "stop", "tools", "tool_choice", "stream", "max_tokens",
                          "logit_bias", "response_format", "logprobs", "metadata", "chat_template_kwargs", "seed",
                          "prompt", "echo", "system", "input", "tokens", "thinking", "stream_options"])  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(more=st.dictionaries(FIELDS, JUNK, max_size=3),
       path=st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses",
                             "/v1/embeddings", "/tokenize", "/detokenize"]))  # fmt: skip
def test_junk_is_never_a_failure_of_the_server(client, more, path):
    base = TEXT if path == "/v1/completions" else {"model": "tiny"} if "token" in path or "emb" in path else CHAT
    status, _, raw = client.request("POST", path, base | more)
    assert status < 500, raw
