"""Grammars are compiled beside what runs: others go on streaming, and no schema costs more than its share of time."""

from __future__ import annotations

import json
import threading
import time

import pytest
from serve_fakes import running

from dacheng.engine.grammar import MAX_SOURCE_BYTES, GrammarCompiler, _Tokens
from dacheng.protocols import Grammar
from dacheng.serve.client import Client
from dacheng.serve.options import EngineOptions
from dacheng.serve.start import start_model

pytest.importorskip("uvicorn")

BIG = {"type": "object", "properties": {f"p{i}": {"enum": [f"v{i}", i]} for i in range(300)}}


def test_others_go_on_while_a_vocabulary_and_a_schema_are_compiled(tiny_directory, monkeypatch):
    """Both are made to take a second, with the interpreter free for others as it is in llguidance."""
    built, compile_it, began, ended = _Tokens.__init__, GrammarCompiler._compile, threading.Event(), threading.Event()

    def slow_vocabulary(self, tokenizer):
        began.set()
        time.sleep(1.0)
        built(self, tokenizer)

    def slow_compile(self, grammar):
        time.sleep(1.0)
        found = compile_it(self, grammar)
        ended.set()
        return found

    monkeypatch.setattr(_Tokens, "__init__", slow_vocabulary)
    monkeypatch.setattr(GrammarCompiler, "_compile", slow_compile)
    model, _ = start_model(tiny_directory, ["tiny"], EngineOptions(max_batch=4))
    with running(model) as url:
        client, answers, counted = Client(url), [], 0
        form = {"type": "json_schema", "json_schema": {"name": "big", "schema": BIG}}
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 8}
        asked = chat | {"response_format": form}
        thread = threading.Thread(target=lambda: answers.append(client.json("POST", "/v1/chat/completions", asked)))
        thread.start()
        assert began.wait(10)
        while not ended.is_set():  # whole answers, one after the other
            client.json("POST", "/v1/chat/completions", chat)
            assert client.request("GET", "/health")[0] == 200
            counted += 1
        thread.join(30)
        assert counted >= 5 and answers[0]["choices"][0]["message"]["content"].startswith("{")
        started = time.monotonic()
        client.json("POST", "/v1/chat/completions", asked)  # it is kept
        assert time.monotonic() - started < 0.9


HOSTILE = {
    "intersections": {"allOf": [{"anyOf": [{"properties": {f"a{i}_{j}": {}}} for j in range(6)]} for i in range(8)]},
    "repetitions": {"type": "string", "pattern": "^(([a-z]{1,900}){1,900}x){1,900}$"},
    "lengths": {"items": {"items": {"type": "string", "maxLength": 50_000}, "maxItems": 5000}, "maxItems": 5000},
    "properties": {"type": "object", "properties": {f"q{i}": {} for i in range(3000)}},
    "numbers": {"items": {"anyOf": [{"multipleOf": i + 0.5, "maximum": 10**i} for i in range(1, 200)]}},
    "itself": {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_schema_may_cost(tiny_directory, name):
    """Followed or refused, but within seconds, of which the interpreter is held for a part only."""
    from dacheng.errors import UsageError
    from dacheng.formats.model_directory import load_model

    compiler = GrammarCompiler(load_model(tiny_directory).tokenizer)
    grammar = Grammar.json_schema(HOSTILE[name])
    assert len(grammar.source) < MAX_SOURCE_BYTES
    started = time.process_time()
    try:
        matcher = compiler.matcher(grammar)
        matcher.mask()
    except UsageError as error:
        assert error.field == "grammar"
    assert time.process_time() - started < 10


def test_a_grammar_that_turns_out_too_complex_ends_its_own_request_only(tiny_directory):
    model, _ = start_model(tiny_directory, ["tiny"], EngineOptions(max_batch=4))
    with running(model) as url:
        client, texts = Client(url), []
        body = {"model": "tiny", "prompt": "the cat", "max_tokens": 150, "temperature": 0}
        expected = client.json("POST", "/v1/completions", body)["choices"][0]["text"]
        thread = threading.Thread(target=lambda: texts.append(client.json("POST", "/v1/completions", body)))
        thread.start()
        status, _, raw = client.request("POST", "/v1/completions", body | {"guided_json": HOSTILE["properties"]})
        assert status == 400 and json.loads(raw)["error"]["param"] == "guided_json" and b"too complex" not in raw
        thread.join(30)
        assert texts[0]["choices"][0]["text"] == expected
        assert client.json("POST", "/v1/completions", body | {"guided_choice": ["yes"]})["choices"][0]["text"] == "yes"


def test_a_schema_that_is_too_large_is_refused_before_anything_is_built(tiny_directory):
    model, _ = start_model(tiny_directory, ["tiny"], EngineOptions())
    with running(model) as url:
        schema = {"enum": ["x" * 90 + str(i) for i in range(MAX_SOURCE_BYTES // 90)]}
        body = {"model": "tiny", "prompt": "x", "guided_json": schema}
        status, _, raw = Client(url).request("POST", "/v1/completions", body)
        assert status == 400 and json.loads(raw)["error"]["param"] == "guided_json" and b"bytes" in raw
        assert "_tokens" not in vars(model.engine.engine.grammars)
