"""What clients send without being asked is taken, where having no effect is what the API says of it.

The bodies are those of openai-python's and anthropic's objects sent back, langchain-openai, llama-index, Open WebUI,
continue, the Codex and Claude command lines, and vLLM's own clients.
"""

from __future__ import annotations

import pytest
from serve_fakes import FakeEngine, chat_tokenizer, running, served

from dacheng.serve.client import Client

pytest.importorskip("uvicorn")

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
USER = [{"role": "user", "content": "x"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
DUMPED = {
    "role": "assistant", "content": None, "refusal": None, "annotations": None, "audio": None, "function_call": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}  # fmt: skip
CACHE = {"type": "ephemeral"}
REQUESTS = {
    "openai, a message sent back": (CHAT, {
        "messages": [*USER, DUMPED, {"role": "tool", "tool_call_id": "c", "content": "1"}],
    }),
    "openai, fields of the sender": (CHAT, {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
                                            "safety_identifier": "s", "prompt_cache_key": "k", "verbosity": "medium",
                                            "reasoning_effort": "none", "modalities": ["text"]}),
    "langchain": (CHAT, {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0.7, "n": 1,
                         "logprobs": False, "top_logprobs": 0, "frequency_penalty": 0, "presence_penalty": 0}),
    "langchain, tools": (CHAT, {"tools": [TOOL | {"function": TOOL["function"] | {"strict": False}}],
                                "tool_choice": "auto", "parallel_tool_calls": True}),
    "langchain, text": (TEXT, {"prompt": ["x"], "n": 1, "best_of": 1, "max_tokens": 256, "top_p": 1, "temperature": 0.7,
                               "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": None, "seed": None}),
    "langchain, embeddings": ("/v1/embeddings", {"input": [[5, 6], [7]], "encoding_format": "base64", "user": "u",
                                                 "dimensions": 3}),
    "llama-index": (CHAT, {"max_tokens": None, "tools": [TOOL], "tool_choice": "none", "parallel_tool_calls": False}),
    "open webui": (CHAT, {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0.8, "top_k": 40,
                          "min_p": 0.0, "frequency_penalty": 0, "seed": 0, "stop": ["\n\n\n"], "logit_bias": {}}),
    "open webui, parts": (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}),
    "continue": (CHAT, {"stream": True, "max_tokens": 64, "stop": [], "tools": [], "prediction": None}),
    "continue, completion": (TEXT, {"prompt": "x", "suffix": "", "stream": True, "stop": ["\n"], "max_tokens": 16}),
    "vllm": (CHAT, {"skip_special_tokens": True, "spaces_between_special_tokens": True, "length_penalty": 1.0,
                    "include_stop_str_in_output": False, "use_beam_search": False, "priority": 0, "min_tokens": 0,
                    "add_generation_prompt": True, "ignore_eos": False, "stop_token_ids": [], "top_k": -1}),
    "codex": (RESPONSES, {
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]}],
        "instructions": "be brief", "tools": [], "tool_choice": "auto", "parallel_tool_calls": False,
        "reasoning": None, "store": False, "stream": True, "include": [], "prompt_cache_key": "k",
    }),
    "responses, an answer sent back": (RESPONSES, {"input": [
        {"role": "user", "content": "x"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}],
         "status": "completed"},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "y", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "c", "output": "1"}], "max_tool_calls": 5, "truncation": "disabled",
        "text": {"format": {"type": "text"}, "verbosity": "medium"}, "service_tier": "auto", "metadata": {}}),
    "anthropic": (MESSAGES, {"max_tokens": 16, "metadata": {"user_id": "u"}, "service_tier": "auto",
                             "cache_control": CACHE,
                             "system": [{"type": "text", "text": "be brief", "cache_control": CACHE}],
                             "thinking": {"type": "adaptive"}, "stop_sequences": [], "mcp_servers": [],
                             "tools": [{"name": "f", "input_schema": {"type": "object"}, "cache_control": CACHE}],
                             "tool_choice": {"type": "auto", "disable_parallel_tool_use": False}}),
    "anthropic, no thoughts": (MESSAGES, {"max_tokens": 16, "thinking": {"type": "disabled"}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def engine():
    return FakeEngine(chat_tokenizer("qwen"), "the cat sat")


@pytest.fixture(scope="module")
def client(engine):
    with running(served(engine, names=["tiny"])) as url:
        yield Client(url)


@pytest.mark.parametrize("name", REQUESTS)
def test_it_is_taken(client, name):
    path, body = REQUESTS[name]
    start = {"messages": USER} if path in (CHAT, MESSAGES) else {}
    status, _, raw = client.request("POST", path, {"model": "tiny"} | start | body)
    assert status == 200, raw


def prompt_of(client, engine, path, body):
    """The text that the model was asked to go on with."""
    client.json("POST", path, {"model": "tiny", "messages": USER, "max_tokens": 8} | body)
    return engine.tokenizer.decode(engine.asked[-1][0], skip_special_tokens=False)


def test_to_think_or_not_is_told_to_the_template(client, engine):
    quiet = "<think>\n\n</think>"
    assert quiet not in prompt_of(client, engine, CHAT, {})
    assert quiet in prompt_of(client, engine, CHAT, {"reasoning_effort": "none"})
    assert quiet in prompt_of(client, engine, MESSAGES, {"thinking": {"type": "disabled"}})
    assert quiet not in prompt_of(client, engine, MESSAGES, {"thinking": {"type": "adaptive"}})


def test_a_thought_sent_back_stands_before_its_answer(client, engine):
    path, body = REQUESTS["responses, an answer sent back"]
    client.json("POST", path, body | {"model": "tiny"})
    prompt = engine.tokenizer.decode(engine.asked[-1][0], skip_special_tokens=False)
    assert "<think>\nhm\n</think>\n\ny\n<tool_call>" in prompt


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"reasoning_effort": "high"}, "reasoning_effort"),
        (CHAT, {"skip_special_tokens": False}, "skip_special_tokens"),
        (CHAT, {"verbosity": "low"}, "verbosity"),
        (TEXT, {"prompt": "x", "suffix": "y"}, "suffix"),
        (RESPONSES, {"reasoning": {"effort": "low"}}, "reasoning.effort"),
        (RESPONSES, {"truncation": "auto"}, "truncation"),
        (RESPONSES, {"include": ["message.output_text.logprobs"]}, "include"),
        (RESPONSES, {"include": ["reasoning.encrypted_content"]}, "include"),  # of a model that thinks
        (MESSAGES, {"max_tokens": 8, "thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        (MESSAGES, {"max_tokens": 8, "output_config": {"effort": "low"}}, "output_config.effort"),
    ],
)  # fmt: skip
def test_what_would_have_an_effect_is_refused(client, path, body, param):
    start = {"messages": USER} if path in (CHAT, MESSAGES) else {}
    status, _, raw = client.request("POST", path, {"model": "tiny"} | start | body)
    assert status == 400 and param in raw.decode(), raw
