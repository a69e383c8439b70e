"""The OpenAPI document says what the readers take, no more and no less."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from serve_fakes import FakeEngine, chat_tokenizer, running, served

from dacheng.serve import adapters
from dacheng.serve.app import GET, POST
from dacheng.serve.client import Client
from dacheng.serve.fields import Fields
from dacheng.serve.openapi.document import OPERATIONS

pytest.importorskip("uvicorn")

KINDS = {"chat": "/v1/chat/completions", "text": "/v1/completions", "response": "/v1/responses",
         "message": "/v1/messages", "embedding": "/v1/embeddings", "tokens": "/tokenize", "ids": "/detokenize",
         "count": "/v1/messages/count_tokens"}  # fmt: skip
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}
NAMED = {"type": "function", "function": {"name": "f"}}
USER = {"role": "user", "content": "x"}
CALL = {"type": "function", "id": "c", "index": 0, "function": {"name": "f", "arguments": "{}"}}
CACHE = {"type": "ephemeral", "ttl": "5m"}
FORM = {"type": "json_schema", "schema": SCHEMA}
NAMED_FORM = {"name": "n", "schema": SCHEMA, "strict": True}
# Bodies that together reach every reader of an object within them. All are accepted.
BODIES = {
    "chat": [
        {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]},
                      {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "x"}]}],
         "tools": [TOOL], "tool_choice": NAMED},
        {"messages": [USER], "tools": [TOOL], "stream": True, "stream_options": {"include_usage": True},
         "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}},
        {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": NAMED_FORM}},
        {"messages": [USER], "structured_outputs": {"json": SCHEMA}, "metadata": {"a": "b"},
         "chat_template_kwargs": {"x": 1}},
    ],
    "text": [
        {"prompt": "x", "response_format": {"type": "json_schema", "json_schema": NAMED_FORM}, "stream": True,
         "stream_options": {}},
        {"prompt": [[5, 6]], "structured_outputs": {"choice": ["a"]}},
    ],
    "response": [
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]},
                   {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "x"}]},
                   {"type": "function_call", "call_id": "c", "name": "f"},
                   {"type": "function_call_output", "call_id": "c", "output": "x"}],
         "tools": [{"type": "function", **FUNCTION}], "metadata": {"a": "b"}, "reasoning": {}, "stream_options": {},
         "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "text", "text": "x"}]}],
         "tools": [{"type": "function", **FUNCTION}], "tool_choice": {"type": "function", "name": "f"}},
        {"input": "x", "text": {"format": {"type": "json_schema", **NAMED_FORM}}},
    ],
    "message": [
        {"max_tokens": 5, "system": [{"type": "text", "text": "x", "cache_control": CACHE}], "cache_control": CACHE,
         "messages": [USER,
                      {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "cache_control": CACHE},
                                                        {"type": "text", "text": "x"},
                                                        {"type": "tool_use", "id": "c", "name": "f"}]},
                      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c",
                                                    "content": [{"type": "text", "text": "x",
                                                                 "cache_control": CACHE}]}]}],
         "tools": [{"name": "f", "input_schema": SCHEMA, "cache_control": CACHE}], "tool_choice": {"type": "auto"},
         "metadata": {"user_id": "u"}, "thinking": {"type": "disabled"}},
        {"max_tokens": 5, "messages": [USER], "output_config": {"format": FORM}},
        {"max_tokens": 5, "messages": [USER], "output_format": FORM},
        {"max_tokens": 5, "messages": [USER], "tools": [{"name": "f"}], "tool_choice": {"type": "tool", "name": "f"}},
    ],
    "embedding": [{"input": "x"}],
    "tokens": [{"prompt": "x"}, {"messages": [USER, {"role": "assistant", "tool_calls": [CALL], "content": None},
                                              {"role": "tool", "tool_call_id": "c",
                                               "content": [{"type": "text", "text": "x"}]}],
                                 "tools": [TOOL], "chat_template_kwargs": {"x": 1}}],
    "ids": [{"tokens": [5]}],
}  # fmt: skip
BODIES["count"] = [{k: v for k, v in body.items() if k not in ("max_tokens", "metadata")} for body in BODIES["message"]]


@pytest.fixture(scope="module")
def engine():
    return FakeEngine(chat_tokenizer("qwen"), "the cat sat")


@pytest.fixture(scope="module")
def client(engine):
    with running(served(engine, names=["tiny"])) as url:
        yield Client(url)


@pytest.fixture(scope="module")
def document(client):
    return client.json("GET", "/openapi.json")


def request_schema(document, path):
    return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


def watched(monkeypatch) -> set[str]:
    """Paths of the fields that readers ask for, from now on."""
    read: set[str] = set()

    def noted(name):
        before = getattr(Fields, name)

        def note(self, key, *more, **how):
            read.add(re.sub(r"\[\d+\]", "[]", self.path(key)))
            return before(self, key, *more, **how)

        monkeypatch.setattr(Fields, name, note)

    noted("raw")
    noted("only")
    return read


def fields_of(schema: dict, where: str = "") -> set[str]:
    """Every field of a request schema, as a path: a.b[].c."""
    found: set[str] = set()
    for inner in schema.get("anyOf", ()):
        found |= fields_of(inner, where)
    for name, inner in schema.get("properties", {}).items():
        path = f"{where}.{name}" if where else name
        found |= {path} | fields_of(inner, path)
    return found | (fields_of(schema["items"], f"{where}[]") if "items" in schema else set())


@pytest.mark.parametrize("kind", BODIES)
def test_every_field_that_is_read_is_described_and_the_other_way_round(client, document, monkeypatch, kind):
    read = watched(monkeypatch)
    schema = request_schema(document, KINDS[kind])
    for body in BODIES[kind]:
        status, _, raw = client.request("POST", KINDS[kind], body | {"model": "tiny"})
        assert status == 200, raw
        jsonschema.validate(body | {"model": "tiny"}, schema)
    assert read == fields_of(schema)


def test_the_fields_of_adapters(engine, tmp_path, monkeypatch):
    """Read before anything is found to be missing."""
    with running(served(engine, names=["tiny"]), adapters_dir=tmp_path) as url:
        client = Client(url)
        described = client.json("GET", "/openapi.json")
        for path in adapters.ROUTES:
            read = watched(monkeypatch)
            status = client.request("POST", path, {"lora_name": "x", "lora_path": "y"} if "unload" not in path
                                    else {"lora_name": "x"})[0]  # fmt: skip
            assert status in (400, 404) and read == fields_of(request_schema(described, path))


@pytest.mark.parametrize("kind", BODIES)
def test_answers_and_pieces_of_answers_are_as_described(client, document, kind):
    def check(value, schema):
        jsonschema.validate(value, schema | {"components": document["components"]})

    described = document["paths"][KINDS[kind]]["post"]["responses"]["200"]["content"]
    streams = [False, True] if "text/event-stream" in described else [False]
    for body in BODIES[kind]:
        for stream in streams:
            asked = {key: value for key, value in body.items() if key not in ("stream", "stream_options")}
            asked |= {"model": "tiny"} | ({"stream": True} if stream else {})
            _, headers, raw = client.request("POST", KINDS[kind], asked)
            schema = described[headers["content-type"].partition(";")[0]]["schema"]
            if not stream:
                check(json.loads(raw), schema)
                continue
            texts = raw.decode().split("\n\n")[:-1]
            events = [dict(line.split(": ", 1) for line in text.split("\n")) for text in texts]
            assert len(events) > 2
            for event in events:
                check(event, schema)
                if event["data"] != "[DONE]":
                    check(json.loads(event["data"]), schema["properties"]["data"]["contentSchema"])


def test_every_route_is_described(document):
    routes = {path.replace(":path}", "}") for path in (*GET, *POST, *adapters.ROUTES)}
    assert {operation.path for operation in OPERATIONS} == routes
    assert set(document["paths"]) == routes - set(adapters.ROUTES)  # they are only there with a folder for them
    assert document["openapi"].startswith("3.1")


def test_the_schemas_are_schemas_and_refs_lead_somewhere(document):
    schemas = [request_schema(document, path) for path in KINDS.values()] + list(
        document["components"]["schemas"].values()
    )
    for schema in schemas:
        jsonschema.Draft202012Validator.check_schema(schema)
    for ref in re.findall(r"'#/components/schemas/(\w+)'", repr(document)):
        assert ref in document["components"]["schemas"]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("chat", {"messages": []}),
        ("chat", {"messages": [USER], "colour": "red"}),
        ("chat", {"messages": [USER], "temperature": 3}),
        ("chat", {"messages": [USER], "stop": [""]}),
        ("chat", {"messages": [USER], "n": 0}),
        ("chat", {"messages": [USER], "store": True}),
        ("chat", {"messages": [{"role": "tool", "content": "x"}]}),
        ("chat", {"messages": [USER], "response_format": {"type": "json_schema"}}),
        ("text", {"prompt": []}),
        ("response", {"input": [{"type": "image"}]}),
        ("message", {"messages": [USER]}),
        ("embedding", {"input": "x", "encoding_format": "int8"}),
        ("tokens", {"prompt": "x", "messages": [USER]}),
        ("ids", {"tokens": ["x"]}),
    ],
)
def test_what_the_document_rules_out_is_refused(client, document, kind, body):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(body | {"model": "tiny"}, request_schema(document, KINDS[kind]))
    assert client.request("POST", KINDS[kind], body | {"model": "tiny"})[0] == 400
