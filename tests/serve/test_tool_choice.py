"""Calls that have to be made, in every format: a model that knows nothing makes one that parses and fits its schema."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
import torch
from serve_fakes import chat_tokenizer, running

from dacheng.engine.async_engine import AsyncEngine
from dacheng.engine.engine import Engine
from dacheng.engine.grammar import GrammarCompiler
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.protocols import Grammar
from dacheng.serve.api_error import APIError
from dacheng.serve.client import Client
from dacheng.serve.served_model import ServedModel
from dacheng.serve.structure import Structure
from dacheng.serve.tool_grammar import answer_grammar
from dacheng.serve.tools import Tools, rule_of

pytest.importorskip("uvicorn")

SAY = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
LLAMA3 = "{% if tools %}{{ tools | tojson }} <|python_tag|>{% endif %}" + SAY
HERMES = "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}" + SAY
ARROW = "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[TOOL_CALLS]f[ARGS]{}{% endif %}" + SAY
SCHEMAS = {
    "weather": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "大成"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "stop": {},
    "deep": {
        "$defs": {"flag": {"type": "boolean"}},
        "properties": {"flags": {"type": "array", "items": {"$ref": "#/$defs/flag"}, "maxItems": 2}},
        "required": ["flags"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in SCHEMAS.items()]
ASK = {"model": "hermes", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 300}
BOUNDED = [tool for tool in TOOLS if tool["function"]["name"] != "stop"]  # any object may go on for ever


def served(name: str, template: str, **more) -> ServedModel:
    tokenizer = chat_tokenizer(template)
    size = tokenizer.vocab_size
    traits = DecoderTraits(vocab_size=size, width=32, layers=1, heads=2, max_positions=1024, initializer_range=0.2)
    engine = Engine(Decoder(traits).init_weights(torch.Generator().manual_seed(1)), tokenizer)
    return ServedModel.of([name], AsyncEngine(engine), tokenizer, max_context=1024, vocab_size=size, **more)


@pytest.fixture(scope="module")
def models():
    return {
        "hermes": served("hermes", HERMES),
        "mistral": served("mistral", "mistral"),
        "arrow": served("arrow", ARROW),
        "llama3": served("llama3", LLAMA3),
        "qwen": served("qwen", "qwen"),
        "none": served("none", "chatml"),
    }


@pytest.fixture(scope="module")
def client(models):
    with running(*models.values()) as url:
        yield Client(url)


def checked(calls, allowed=SCHEMAS) -> list[str]:
    """Names of calls whose arguments fit."""
    for call in calls:
        jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]])
        assert call["function"]["name"] in allowed
    return [call["function"]["name"] for call in calls]


@pytest.mark.parametrize("model", ["hermes", "mistral", "arrow", "llama3"])
def test_required_and_named_calls_are_made(client, model):
    for seed in range(4):
        asked = ASK | {"model": model, "tools": BOUNDED, "tool_choice": "required", "seed": seed, "temperature": 1.0}
        (choice,) = client.json("POST", "/v1/chat/completions", asked | {"parallel_tool_calls": False})["choices"]
        assert choice["finish_reason"] == "tool_calls" and not choice["message"]["content"]
        assert len(checked(choice["message"]["tool_calls"])) == 1
        named = asked | {
            "tool_choice": {"type": "function", "function": {"name": "deep"}},
            "parallel_tool_calls": False,
        }
        (choice,) = client.json("POST", "/v1/chat/completions", named)["choices"]
        assert checked(choice["message"]["tool_calls"]) == ["deep"] and choice["finish_reason"] == "tool_calls"
        some = {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]}
        asked["tool_choice"] = {"type": "allowed_tools", "allowed_tools": some}
        (choice,) = client.json("POST", "/v1/chat/completions", asked)["choices"]
        names = checked(choice["message"].get("tool_calls", []), ["weather"])
        assert names or choice["finish_reason"] == "length"


def test_the_other_apis(client):
    flat = [{"type": "function", **tool["function"]} for tool in BOUNDED]
    for choice in ("required", {"type": "function", "name": "weather"}):
        asked = {"model": "hermes", "input": "x", "tools": flat, "tool_choice": choice, "parallel_tool_calls": False}
        found = client.json("POST", "/v1/responses", asked)
        (item,) = found["output"]
        assert item["type"] == "function_call" and found["status"] == "completed"
        jsonschema.validate(json.loads(item["arguments"]), SCHEMAS[item["name"]])
        assert found["tool_choice"] == choice and found["parallel_tool_calls"] is False
        assert item["name"] == "weather" or choice == "required"
    tools = [{"name": tool["name"], "input_schema": tool["parameters"]} for tool in flat]
    for choice in ({"type": "any"}, {"type": "tool", "name": "deep"}):
        asked = {**ASK, "tools": tools, "tool_choice": choice | {"disable_parallel_tool_use": True}}
        found = client.json("POST", "/v1/messages", asked)
        (block,) = found["content"]
        assert block["type"] == "tool_use" and found["stop_reason"] == "tool_use"
        jsonschema.validate(block["input"], SCHEMAS[block["name"]])


def test_a_model_that_was_taught_no_calls_is_not_asked_for_one(client):
    for more in ({"tool_choice": "required"}, {"parallel_tool_calls": False}):
        status, _, raw = client.request("POST", "/v1/chat/completions", ASK | {"model": "none", "tools": TOOLS} | more)
        assert status == 400 and b"tool" in raw, raw


def test_structures_of_every_api(client):
    schema = SCHEMAS["weather"]
    form = {"type": "json_schema", "name": "w", "schema": schema, "strict": True}
    found = client.json("POST", "/v1/responses", {"model": "hermes", "input": "x", "text": {"format": form}})
    jsonschema.validate(json.loads(found["output"][0]["content"][0]["text"]), schema)
    assert found["text"]["format"] == form
    wrapped = {"type": "json_schema", "json_schema": {"name": "w", "schema": schema}}
    gbnf = 'root ::= "a" [bc]+ "d"'
    for more, pattern in (
        ({"response_format": wrapped}, None),
        ({"structured_outputs": {"json": json.dumps(schema), "disable_fallback": False}}, None),
        ({"guided_json": schema}, None),
        ({"guided_regex": "[ab]{3}/[0-9]{2}"}, r"[ab]{3}/\d\d"),
        ({"structured_outputs": {"regex": "x{4}"}}, "xxxx"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"structured_outputs": {"choice": ["大成"]}}, "大成"),
        ({"structured_outputs": {"grammar": 'start: "a" /[0-9]/ "b"'}}, r"a\db"),
        ({"guided_grammar": gbnf, "max_tokens": 1000}, "a[bc]+d?"),
    ):
        chat = {"model": "hermes", "messages": ASK["messages"], **more}
        text = client.json("POST", "/v1/chat/completions", chat)["choices"][0]["message"]["content"]
        body = {"model": "hermes", "prompt": "x", "max_tokens": 200, **more}
        for found in (text, client.json("POST", "/v1/completions", body | {"max_tokens": 200})["choices"][0]["text"]):
            if pattern is None:
                jsonschema.validate(json.loads(found), schema)
            else:
                assert re.fullmatch(pattern, found), (more, found)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objekt"}}}},
         "response_format"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"guided_grammar": "start: nothing"}, "guided_grammar"),
        ({"guided_grammar": "root ::= nothing"}, "guided_grammar"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "x"}}}}}
         ], "tool_choice": "required"}, "tool_choice"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_names_its_field(client, more, param):
    status, _, raw = client.request("POST", "/v1/chat/completions", ASK | more)
    assert status == 400 and json.loads(raw)["error"]["param"] == param, raw


# --- the grammars by themselves ---------------------------------------------------------------------------------------
WEATHER = '{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}'
BAD = WEATHER.replace("3", "33")
STOP = '{"name": "stop", "arguments": {"any": [1]}}'


def fits(model: ServedModel, text: str, *, must=False, strict=(), parallel=True, inside=False, structure=None) -> bool:
    tools = Tools(tuple(TOOLS), frozenset(strict))
    found = answer_grammar(model, tools, rule_of(tools, must=must, parallel=parallel), structure, inside)
    matcher = GrammarCompiler(model.tokenizer).matcher(found.grammar)
    return all(matcher.accept(i) for i in model.tokenizer.encode(text, allow_special=True)) and matcher.may_end


def hermes(call: str) -> str:
    return f"<tool_call>\n{call}\n</tool_call>"


@pytest.mark.parametrize(
    ("kind", "text", "how", "expected"),
    [
        ("hermes", "plain text <tool", {"strict": ["weather"]}, True),
        ("hermes", "", {"strict": ["weather"]}, True),
        ("hermes", "I look. " + hermes(WEATHER) + "\n" + hermes(STOP), {"strict": ["weather"]}, True),
        ("hermes", "I look. " + hermes(BAD), {"strict": ["weather"]}, False),
        ("hermes", hermes(BAD), {"strict": ["stop"]}, True),
        ("hermes", hermes(WEATHER), {"parallel": False}, True),
        ("hermes", hermes(WEATHER) + "\n" + hermes(WEATHER), {"parallel": False}, False),
        ("hermes", hermes(WEATHER) + "\n" + hermes(WEATHER), {"must": True}, True),
        ("hermes", hermes(BAD), {"must": True}, False),
        ("hermes", "text", {"must": True}, False),
        ("hermes", "", {"must": True}, False),
        ("qwen", "<think>\nhm <tool_call> \n</think>\n\n" + hermes(STOP), {"must": True}, True),
        ("qwen", "hm\n</think>\n\n" + hermes(STOP), {"must": True, "inside": True}, True),
        ("qwen", "hm\n</think>\n\n", {"must": True, "inside": True}, False),
        ("mistral", f"[TOOL_CALLS][{WEATHER}, {STOP}]", {"must": True}, True),
        ("mistral", f"[TOOL_CALLS][{WEATHER}, {STOP}]", {"parallel": False}, False),
        ("mistral", f"So: [TOOL_CALLS][{WEATHER}]", {"parallel": False}, True),
        ("mistral", "So: nothing", {"parallel": False}, True),
        ("arrow", '[TOOL_CALLS]weather[ARGS]{"city": "Oslo", "days": 3}[TOOL_CALLS]stop[ARGS]{}', {"must": True}, True),
        ("arrow", '[TOOL_CALLS]weather[ARGS]{"city": "Bergen", "days": 3}', {"must": True}, False),
        ("llama3", WEATHER.replace("arguments", "parameters"), {"must": True}, True),
        ("llama3", WEATHER.replace("arguments", "parameters"), {"parallel": False}, True),
        ("llama3", BAD.replace("arguments", "parameters"), {"strict": ["weather"]}, False),
        ("llama3", "text with {", {"parallel": False}, True),
        ("hermes", '{"city": "Oslo"}', {"structure": Structure(Grammar.json_object(), "x")}, True),
        ("hermes", hermes(WEATHER), {"structure": Structure(Grammar.json_object(), "x")}, True),
        ("hermes", hermes(BAD), {"structure": Structure(Grammar.json_object(), "x")}, False),
        ("hermes", "text", {"structure": Structure(Grammar.json_object(), "x")}, False),
    ],
)
def test_what_fits(models, kind, text, how, expected):
    assert fits(models[kind], text, **how) is expected


def test_a_thought_before_a_structure(models):
    model = models["qwen"]
    for grammar, text in ((Grammar.json_object(), "{}"), (Grammar("regex", "a/b\n"), "a/b\n"),
                          (Grammar.choice(["yes"]), "yes")):  # fmt: skip
        found = answer_grammar(model, Tools(), None, Structure(grammar, "x"), False)
        for whole in (text, f"<think>\nhm\n</think>\n\n{text}"):
            matcher = GrammarCompiler(model.tokenizer).matcher(found.grammar)
            assert all(map(matcher.accept, model.tokenizer.encode(whole))) and matcher.may_end, whole
    lark = Structure(Grammar("lark", "start: /a/"), "x")
    assert answer_grammar(model, Tools(), None, lark, False) is lark
    with pytest.raises(APIError, match="thinks"):
        answer_grammar(model, Tools(), None, lark, True)
