"""Anthropic's own client against a running server."""

from __future__ import annotations

import pytest
from serve_fakes import FakeEngine, chat_tokenizer, eventually, running, served

anthropic = pytest.importorskip("anthropic")
pytest.importorskip("uvicorn")

USER = [{"role": "user", "content": "hello"}]
TOOLS = [{"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {}}}]
SAID = "the cat sat on 大成 END of the story"


@pytest.fixture(scope="module")
def engine():
    return FakeEngine(chat_tokenizer(), SAID)


@pytest.fixture(scope="module")
def client(engine):
    with running(served(engine), keys=["a-secret-key"]) as url:
        yield anthropic.Anthropic(base_url=url, api_key="a-secret-key", max_retries=0)


def test_a_message(client, engine):
    extra = {"top_k": 3}
    found = client.messages.create(model="tiny", max_tokens=100, messages=USER, system="be kind", extra_body=extra)
    (block,) = found.content
    assert block.type == "text" and block.text == SAID
    assert found.stop_reason == "end_turn" and found.stop_sequence is None and found.role == "assistant"
    assert found.usage.input_tokens == len(engine.asked[-1][0]) and found.usage.output_tokens > 3
    text = engine.tokenizer.decode(engine.asked[-1][0], skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello")
    assert engine.asked[-1][1].top_k == 3
    counted = client.messages.count_tokens(model="tiny", messages=USER, system="be kind")
    assert counted.input_tokens == found.usage.input_tokens


def test_stops_and_lengths(client):
    found = client.messages.create(model="tiny", max_tokens=100, messages=USER, stop_sequences=["nothing", "END"])
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", "END")
    assert found.content[0].text == SAID[: SAID.find("END")]
    found = client.messages.create(model="tiny", max_tokens=2, messages=USER)
    assert found.stop_reason == "max_tokens" and found.usage.output_tokens == 2


def test_the_sequence_of_events(client):
    events = list(client.messages.create(model="tiny", max_tokens=100, messages=USER, stream=True))
    kinds = [event.type for event in events if event.type != "ping"]
    deltas = kinds.count("content_block_delta")
    assert kinds == [
        "message_start", "content_block_start", *["content_block_delta"] * deltas, "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    with client.messages.stream(model="tiny", max_tokens=100, messages=USER) as stream:
        assert "".join(stream.text_stream) == SAID
        assert stream.get_final_message().stop_reason == "end_turn"


def test_tools_and_thoughts(client, engine, monkeypatch):
    said = '<think>hm</think>Let me see.\n<tool_call>{"name": "f", "arguments": {"x": "大"}}</tool_call>'
    monkeypatch.setattr(engine, "say", lambda prompt, params: said)
    found = client.messages.create(model="tiny", max_tokens=100, messages=USER, tools=TOOLS)
    thought, text, call = found.content
    assert (thought.thinking, text.text, call.name, call.input) == ("hm", "Let me see.", "f", {"x": "大"})
    assert found.stop_reason == "tool_use" and call.id.startswith("toolu_")
    with client.messages.stream(model="tiny", max_tokens=100, messages=USER, tools=TOOLS) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
    assert final.content[2].input == {"x": "大"} and final.stop_reason == "tool_use"
    monkeypatch.setattr(engine, "say", lambda prompt, params: SAID)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "42"}]}
    answered = [*USER, {"role": "assistant", "content": [text.model_dump(), call.model_dump()]},
                {"role": "user", "content": [result]}]  # fmt: skip
    client.messages.create(model="tiny", max_tokens=20, messages=answered, tools=TOOLS)
    assert "42" in engine.tokenizer.decode(engine.asked[-1][0])


def test_a_last_message_of_the_assistant_is_continued(client, engine):
    client.messages.create(model="tiny", max_tokens=5, messages=[*USER, {"role": "assistant", "content": "I say"}])
    assert engine.tokenizer.decode(engine.asked[-1][0], skip_special_tokens=False).endswith("I say")


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"extra_body": {"temperature": 2}}, "temperature"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "nothing"}, "tools": TOOLS}, "tool_choice"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"extra_body": {"no_such": 1}}, "no_such"),
        ({"messages": []}, "messages"),
    ],
)
def test_errors_name_the_field(client, more, field):
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**{"model": "tiny", "max_tokens": 5, "messages": USER} | more)
    body = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert body["error"]["message"].startswith(field)


def test_other_errors(client):
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="nobody", max_tokens=5, messages=USER)
    with pytest.raises(anthropic.AuthenticationError):
        client.copy(api_key="wrong").messages.create(model="tiny", max_tokens=5, messages=USER)


def test_closing_a_stream_cancels_the_request():
    engine = FakeEngine(chat_tokenizer(), "the cat " * 50, pause_s=0.02)
    with running(served(engine)) as url:
        client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
        with client.messages.stream(model="tiny", max_tokens=100, messages=USER) as stream:
            next(iter(stream.text_stream))
        assert eventually(lambda: engine.running == 0 and engine.cancelled == 1)
