"""OpenAI's own client against a running server."""

from __future__ import annotations

import asyncio
import base64
import json

import numpy as np
import pytest
from serve_fakes import FakeEngine, chat_tokenizer, eventually, running, served

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

USER = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def engine():
    return FakeEngine(chat_tokenizer(), "the cat sat on 大成 🙂 END of the story")


@pytest.fixture(scope="module")
def url(engine):
    with running(served(engine)) as found:
        yield found


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


SAID = "the cat sat on 大成 🙂 END of the story"


def test_a_chat(client, engine):
    found = client.chat.completions.create(model="tiny", messages=USER, temperature=0, seed=7, max_tokens=100)
    (choice,) = found.choices
    assert choice.message.content == SAID and choice.message.role == "assistant" and choice.finish_reason == "stop"
    assert found.object == "chat.completion" and found.model == "tiny" and found.id.startswith("chatcmpl-")
    assert found.usage.prompt_tokens == len(engine.asked[-1][0])
    assert found.usage.completion_tokens == len(engine.tokenizer.encode(SAID)) + 1
    assert engine.asked[-1][1].temperature == 0 and engine.asked[-1][1].seed == 7


def test_the_prompt_is_what_the_renderer_makes(client, engine):
    client.chat.completions.create(model="alias", messages=[{"role": "developer", "content": "be kind"}, *USER])
    text = engine.tokenizer.decode(engine.asked[-1][0], skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhello<|im_end|>")


def test_a_stream(client):
    chunks = list(client.chat.completions.create(model="tiny", messages=USER, stream=True))
    assert len({chunk.id for chunk in chunks}) == 1 and all(chunk.choices for chunk in chunks)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant" and all(delta.role is None for delta in deltas[1:])
    assert "".join(delta.content or "" for delta in deltas) == SAID
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices[0].finish_reason == "stop" and all(chunk.usage is None for chunk in chunks)


def test_usage_at_the_end_of_a_stream(client):
    options = {"include_usage": True}
    *chunks, last = client.chat.completions.create(model="tiny", messages=USER, stream=True, stream_options=options)
    assert last.choices == [] and last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks)


def test_several_choices(client, engine):
    found = client.chat.completions.create(model="tiny", messages=USER, n=3, seed=5)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert all(choice.message.content == SAID for choice in found.choices)
    assert sorted(params.seed for _, params, _ in engine.asked[-3:]) == [5, 6, 7]
    chunks = client.chat.completions.create(model="tiny", messages=USER, n=3, stream=True)
    texts, ends = ["", "", ""], []
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends += [choice.index] * (choice.finish_reason is not None)
    assert texts == [SAID] * 3 and sorted(ends) == [0, 1, 2]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["END", "大成", ["nothing", " sat on"]])
def test_logprobs_are_those_of_the_text(client, stop, stream):
    asked = {"model": "tiny", "messages": USER, "logprobs": True, "top_logprobs": 2, "stop": stop}
    if stream:
        chunks = list(client.chat.completions.create(**asked, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        entries = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content or []]
    else:
        (choice,) = client.chat.completions.create(**asked).choices
        text, entries = choice.message.content, choice.logprobs.content
    first = min(SAID.find(s) for s in ([stop] if isinstance(stop, str) else stop) if s in SAID)
    assert text == SAID[:first]
    said = b"".join(bytes(entry.bytes) for entry in entries)
    assert said.startswith(text.encode()) and all(entry.logprob == -0.5 for entry in entries)
    assert len(said) - len(text.encode()) < 8  # no more than the token that the stop string cuts
    assert [top.logprob for top in entries[0].top_logprobs] == [-0.5, -9999.0]
    none = client.chat.completions.create(**asked | {"top_logprobs": 0}).choices[0].logprobs.content
    assert none[0].top_logprobs == []


def test_length(client):
    (choice,) = client.chat.completions.create(model="tiny", messages=USER, max_completion_tokens=3).choices
    assert choice.finish_reason == "length" and SAID.startswith(choice.message.content)


def test_sampling_reaches_the_engine(client, engine):
    client.chat.completions.create(
        model="tiny", messages=USER, presence_penalty=0.5, frequency_penalty=-1, logit_bias={"5": -100, "7": 3.5},
        top_p=0.9, max_tokens=4, stop=["x"],
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "ignore_eos": True,
                    "stop_token_ids": [9], "cache_salt": "mine"},
    )  # fmt: skip
    _, p, salt = engine.asked[-1]
    assert (p.presence_penalty, p.frequency_penalty, p.logit_bias) == (0.5, -1.0, ((5, -100.0), (7, 3.5)))
    assert (p.top_p, p.top_k, p.min_p, p.repetition_penalty) == (0.9, 5, 0.1, 1.2)
    assert (p.min_tokens, p.max_tokens, p.ignore_eos, p.stop_token_ids, p.stop) == (2, 4, True, (9,), ("x",))
    assert salt.endswith(":mine")


def test_tool_calls(client, engine, monkeypatch):
    said = 'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"x": "大"}}\n</tool_call>'
    monkeypatch.setattr(engine, "say", lambda prompt, params: said)
    (choice,) = client.chat.completions.create(model="tiny", messages=USER, tools=TOOLS).choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see."
    assert call.function.name == "f" and json.loads(call.function.arguments) == {"x": "大"}
    chunks = list(client.chat.completions.create(model="tiny", messages=USER, tools=TOOLS, stream=True))
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    assert [(d.index, d.function.name, json.loads(d.function.arguments)) for d in deltas] == [(0, "f", {"x": "大"})]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    (choice,) = client.chat.completions.create(model="tiny", messages=USER, tools=TOOLS, tool_choice="none").choices
    assert choice.message.content == said and choice.message.tool_calls is None
    monkeypatch.setattr(engine, "say", lambda prompt, params: SAID)
    answered = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "42"},
    ]
    (choice,) = client.chat.completions.create(model="tiny", messages=answered, tools=TOOLS).choices
    assert choice.message.content == SAID
    assert "42" in engine.tokenizer.decode(engine.asked[-1][0])


@pytest.mark.parametrize("stop", [None, ["42"]])
def test_calls_that_begin_with_a_special_token(stop):
    """[TOOL_CALLS] is no text for the engine, and ends up where it was said."""
    said = 'Let me see 大. [TOOL_CALLS][{"name": "f", "arguments": {"x": "大"}}]'
    engine = FakeEngine(chat_tokenizer("mistral"), said)
    assert engine.tokenizer.special_tokens["[TOOL_CALLS]"] in engine.tokenizer.encode(said, allow_special=True)
    with running(served(engine)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        (choice,) = client.chat.completions.create(model="tiny", messages=USER, tools=TOOLS, stop=stop).choices
    (call,) = choice.message.tool_calls
    assert choice.message.content == "Let me see 大." and json.loads(call.function.arguments) == {"x": "大"}


def test_thoughts_are_apart(client, engine, monkeypatch):
    monkeypatch.setattr(engine, "say", lambda prompt, params: "<think>\nhm\n</think>\n\nyes")
    found = client.chat.completions.create(model="tiny", messages=USER)
    (choice,) = found.choices
    assert choice.message.content == "yes" and choice.message.reasoning_content == "hm"
    spent = found.usage.completion_tokens_details.reasoning_tokens
    assert 2 <= spent < found.usage.completion_tokens
    chunks = list(client.chat.completions.create(model="tiny", messages=USER, stream=True))
    thought = "".join(getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert (thought, said) == ("hm", "yes")


def test_completions(client, engine):
    found = client.completions.create(model="tiny", prompt="once", max_tokens=50)
    assert found.choices[0].text == SAID and found.object == "text_completion"
    batch = client.completions.create(model="tiny", prompt=[[40, 41], [42]], n=2, max_tokens=3)
    assert [choice.index for choice in batch.choices] == [0, 1, 2, 3]
    assert sorted(tuple(prompt) for prompt, _, _ in engine.asked[-4:]) == [(40, 41), (40, 41), (42,), (42,)]
    assert batch.usage.prompt_tokens == 3 and batch.usage.completion_tokens == 12
    streamed = "".join(
        chunk.choices[0].text for chunk in client.completions.create(model="tiny", prompt="once", stream=True,
                                                                     max_tokens=50)
    )  # fmt: skip
    assert streamed == SAID


def test_echo_with_logprobs_as_lm_eval_asks(client, engine):
    ids = engine.tokenizer.encode("the cat sat")
    found = client.completions.create(
        model="tiny", prompt=[ids, ids[:2]], echo=True, logprobs=1, max_tokens=1, temperature=0, seed=1
    )
    for choice, prompt in zip(found.choices, (ids, ids[:2])):
        logprobs = choice.logprobs
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(prompt) + 1
        assert logprobs.token_logprobs == [None] + [-1.0] * (len(prompt) - 1) + [-0.5]
        assert logprobs.top_logprobs[0] is None and max(logprobs.top_logprobs[1].values()) == -1.0
        assert choice.text == engine.tokenizer.decode(prompt) + "the" == "".join(logprobs.tokens)
        assert logprobs.text_offset == [len("".join(logprobs.tokens[:k])) for k in range(len(prompt) + 1)]
    scored = client.completions.create(model="tiny", prompt=ids, echo=True, logprobs=0, max_tokens=0)
    assert scored.choices[0].text == "the cat sat" and len(scored.choices[0].logprobs.tokens) == len(ids)


def test_embeddings(client, engine):
    found = client.embeddings.create(model="tiny", input=["the cat", "大"])  # the client asks for base64
    assert [entry.index for entry in found.data] == [0, 1]
    n = len(engine.tokenizer.encode("the cat"))
    assert found.data[0].embedding == [n, 0.5, -1.0]
    floats = client.embeddings.create(model="tiny", input="the cat", encoding_format="float")
    assert floats.data[0].embedding == found.data[0].embedding and floats.usage.prompt_tokens == n
    raw = client.embeddings.with_raw_response.create(model="tiny", input="the cat", encoding_format="base64")
    encoded = json.loads(raw.text)["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(encoded), "<f4").tolist() == [n, 0.5, -1.0]


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "alias"]
    assert client.models.retrieve("alias").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_responses(client, engine, monkeypatch):
    found = client.responses.create(model="tiny", input="hello", instructions="be kind")
    assert found.output_text == SAID and found.status == "completed" and found.usage.output_tokens > 3
    events = list(client.responses.create(model="tiny", input=[{"role": "user", "content": "hello"}], stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == SAID
    done = next(event.item for event in events if event.type == "response.output_item.done")
    assert done.id == events[-1].response.output[0].id and events[-1].response.output_text == SAID
    cut = client.responses.create(model="tiny", input="hello", max_output_tokens=2)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"
    monkeypatch.setattr(engine, "say", lambda *_: '<tool_call>{"name": "f", "arguments": {}}</tool_call>')
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
    (call,) = client.responses.create(model="tiny", input="hello", tools=tools).output
    assert call.type == "function_call" and call.name == "f" and call.arguments == "{}"
    monkeypatch.setattr(engine, "say", lambda *_: "<think>hm</think>yes")
    thought, message = (found := client.responses.create(model="tiny", input="hello")).output
    assert thought.type == "reasoning" and thought.content[0].text == "hm" and message.content[0].text == "yes"
    assert 1 <= found.usage.output_tokens_details.reasoning_tokens < found.usage.output_tokens
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model="tiny", input="x", previous_response_id="resp_1")


def test_errors_have_their_classes(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="other", messages=USER)
    assert caught.value.param == "model" and caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=USER, temperature=3)
    assert caught.value.param == "temperature" and caught.value.request_id
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 2000}])
    assert caught.value.code == "context_length_exceeded"


def test_closing_a_stream_cancels_the_request():
    engine = FakeEngine(chat_tokenizer(), "the cat " * 50, pause_s=0.02)
    with running(served(engine)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(model="tiny", messages=USER, stream=True)
        next(iter(stream))
        assert engine.running == 1
        stream.close()
        assert eventually(lambda: engine.running == 0 and engine.cancelled == 1)
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="tiny", messages=USER, timeout=0.2)
        assert eventually(lambda: engine.running == 0 and engine.cancelled == 2)


def test_a_full_queue_is_429_and_the_client_tries_again():
    engine = FakeEngine(chat_tokenizer(), "the cat sat", pause_s=0.1, room=1, max_waiting=1)
    with running(served(engine)) as url:
        impatient = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        patient = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=20)

        async def crowd():
            asked = [patient.chat.completions.create(model="tiny", messages=USER) for _ in range(4)]
            first = asyncio.gather(*asked)
            await asyncio.sleep(0.2)
            with pytest.raises(openai.RateLimitError) as caught:
                await asyncio.to_thread(impatient.chat.completions.create, model="tiny", messages=USER)
            assert int(caught.value.response.headers["retry-after"]) >= 1
            return await first

        assert [found.choices[0].message.content for found in asyncio.run(crowd())] == ["the cat sat"] * 4


@pytest.mark.parametrize(("ends", "kind"), [("error", "InternalServerError"), ("deadline", "InternalServerError")])
def test_what_ends_badly_says_so(ends, kind):
    engine = FakeEngine(chat_tokenizer(), "the cat sat", ends=ends)
    with running(served(engine)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(getattr(openai, kind)):
            client.chat.completions.create(model="tiny", messages=USER)
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(model="tiny", messages=USER, stream=True))
        assert client.models.list().data[0].id == "tiny"
