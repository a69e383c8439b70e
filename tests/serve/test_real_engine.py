"""The whole of it: a directory, the engine and its thread, HTTP, and the clients."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
import torch
from serve_fakes import eventually, running

from dacheng.engine import Engine
from dacheng.formats.model_directory import load_model
from dacheng.protocols import SamplingParams
from dacheng.serve.check import run_check
from dacheng.serve.client import Client
from dacheng.serve.options import EngineOptions
from dacheng.serve.start import start_model
from dacheng.text import ChatRenderer

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

USER = [{"role": "user", "content": "the cat sat on the mat"}]


@pytest.fixture(scope="module")
def served(tiny_directory):
    model, notes = start_model(tiny_directory, ["tiny"], EngineOptions(max_batch=4, max_waiting=6))
    assert any("memory" in note for note in notes)
    return model


@pytest.fixture(scope="module")
def url(served):
    with running(served) as found:
        yield found


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def local(tiny_directory):
    """The same model, asked without a server."""
    loaded = load_model(tiny_directory)
    return Engine(loaded.model, loaded.tokenizer), ChatRenderer(loaded.tokenizer)


def idle(served):
    stats = served.engine.stats()
    return stats["num_requests_running"] == stats["num_requests_waiting"] == 0


def test_the_server_says_what_the_engine_says(client, local):
    engine, renderer = local
    prompt = renderer.render(USER, add_generation_prompt=True).token_ids
    params = SamplingParams(max_tokens=24, temperature=0, logprobs=True, top_logprobs=3)
    (expected,) = engine.generate([prompt], params)
    asked = {"model": "tiny", "messages": USER, "temperature": 0, "max_tokens": 24}
    found = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    assert found.choices[0].message.content == expected.text
    assert found.choices[0].finish_reason == expected.finish_reason
    assert found.usage.prompt_tokens == len(prompt) and found.usage.completion_tokens == len(expected.token_ids)
    entries = found.choices[0].logprobs.content
    for entry, logprob, top in zip(entries, expected.logprobs, expected.top_logprobs):
        assert entry.logprob == pytest.approx(logprob, abs=1e-5)
        assert [other.logprob for other in entry.top_logprobs] == pytest.approx([v for _, v in top], abs=1e-5)
    streamed = client.chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == expected.text


def test_scores_are_those_of_loglikelihood(client, local):
    """As lm-evaluation-harness asks: token ids, echo, logprobs=1, max_tokens=1."""
    engine, _ = local
    context, continuation = "the cat", " sat on the mat, 大成"
    ((nats, greedy),) = engine.loglikelihood([(context, continuation)])
    ids = engine.tokenizer.encode(context + continuation)
    begin = len(engine.tokenizer.encode(context))
    found = client.completions.create(
        model="tiny", prompt=[ids, ids[:3]], echo=True, logprobs=1, max_tokens=1, temperature=0
    ).choices[0].logprobs  # fmt: skip
    values, tops = found.token_logprobs[begin:-1], found.top_logprobs[begin:-1]
    assert sum(values) == pytest.approx(nats, abs=1e-4)
    assert all(value == max(top.values()) for value, top in zip(values, tops)) == greedy
    (scored,) = client.completions.create(model="tiny", prompt=[ids], echo=True, logprobs=1, max_tokens=0).choices
    assert scored.logprobs.token_logprobs == pytest.approx(found.token_logprobs[:-1], abs=1e-5)


def test_embeddings_are_the_engine_s(client, local):
    engine, _ = local
    texts = ["the cat", "大成 若缺", "def main():"]
    vectors = engine.embed(texts)
    for encoding in ("float", "base64"):
        found = client.embeddings.create(model="tiny", input=texts, encoding_format=encoding)
        for entry, vector in zip(found.data, vectors):
            values = entry.embedding
            if isinstance(values, str):
                continue
            assert values == pytest.approx(vector, abs=1e-5) and math.hypot(*values) == pytest.approx(1, abs=1e-5)


def test_seeds_and_penalties(client, local):
    asked = {"model": "tiny", "messages": USER, "max_tokens": 20, "temperature": 1.5}
    texts = [[c.message.content for c in client.chat.completions.create(**asked, seed=5, n=3).choices] for _ in "ab"]
    assert texts[0] == texts[1] and len(set(texts[0])) == 3
    greedy = {"model": "tiny", "prompt": "the cat", "max_tokens": 10, "temperature": 0}
    (expected,) = local[0].generate(["the cat"], SamplingParams(max_tokens=10, temperature=0))
    assert client.completions.create(**greedy).choices[0].text == expected.text
    banned = {str(token_id): -100 for token_id in expected.token_ids}
    other = client.post("/completions", cast_to=object, body=greedy | {"logit_bias": banned, "logprobs": 0})
    said = other["choices"][0]["logprobs"]["tokens"]
    names = [local[0].tokenizer.decode_bytes([i], False).decode("utf-8", "replace") for i in expected.token_ids]
    assert {name for name in said if "\ufffd" not in name}.isdisjoint(names)
    (expected,) = local[0].generate(
        ["the cat"], SamplingParams(max_tokens=60, temperature=0, frequency_penalty=2, presence_penalty=2, min_tokens=9)
    )
    asked = greedy | {"max_tokens": 60, "frequency_penalty": 2, "presence_penalty": 2, "extra_body": {"min_tokens": 9}}
    assert client.completions.create(**asked).choices[0].text == expected.text


def test_disconnects_free_the_engine(client, served):
    asked = {"model": "tiny", "messages": USER, "max_tokens": 400, "extra_body": {"ignore_eos": True}}
    streams = [client.chat.completions.create(**asked, stream=True) for _ in range(3)]
    for stream in streams:
        next(iter(stream))
        stream.close()
    assert eventually(lambda: idle(served))
    before = served.engine.stats()["generation_tokens"]
    assert served.engine.stats()["kv_cache_usage"] < 1 and before < 3 * 400


def test_a_crowd_is_served_or_told_to_come_back(url, served):
    patient = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=10)
    hasty = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    async def crowd(client):
        asked = [
            client.completions.create(model="tiny", prompt="the cat", max_tokens=60, extra_body={"ignore_eos": True})
            for _ in range(24)
        ]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(crowd(hasty))
    refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
    assert refused and len(refused) + sum(not isinstance(a, Exception) for a in answers) == 24
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
    assert not any(isinstance(answer, Exception) for answer in asyncio.run(crowd(patient)))
    assert eventually(lambda: idle(served))


def test_deadlines(tiny_directory):
    from dacheng.serve.limits import Limits

    model, _ = start_model(tiny_directory, ["tiny"])
    with running(model, limits=Limits(deadline_s=0.05)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=3)
        asked = {"model": "tiny", "prompt": "the cat", "max_tokens": 480, "extra_body": {"ignore_eos": True}}
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(**asked)
        assert caught.value.status_code == 504 and caught.value.response.headers["x-should-retry"] == "false"
        assert eventually(lambda: idle(model))


def test_a_nan_is_an_error_of_its_request(tiny_directory):
    model, _ = start_model(tiny_directory, ["tiny"])
    with torch.no_grad():
        model.engine.engine.model.embed.weight[50] = float("nan")
    with running(model) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError):
            client.completions.create(model="tiny", prompt=[50], max_tokens=2)
        assert Client(url).json("GET", "/health") == {"status": "ok"}


def test_the_self_test(url):
    lines: list[str] = []
    assert run_check(Client(url), lines.append) == 0, lines


def test_metrics_count_what_was_done(url):
    client = Client(url)
    client.json("POST", "/v1/completions", {"model": "tiny", "prompt": "the cat sat on the mat", "max_tokens": 5})
    text = client.request("GET", "/metrics")[2].decode()
    for name in ("prompt_tokens_total", "generation_tokens_total", "prefix_cache_queries_total", "kv_cache_usage_perc",
                 "num_preemptions_total", "prefix_cache_hits_total"):  # fmt: skip
        assert f'vllm:{name}{{model_name="tiny"}}' in text, name


SCHEMA = {
    "type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["ok", "n"], "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_a_json_schema_is_kept_to(client, stream):
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        found = client.chat.completions.create(
            model="tiny", messages=USER, response_format=form, max_tokens=200, seed=seed, stream=stream
        )
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in found)
        else:
            text = found.choices[0].message.content
            assert found.choices[0].finish_reason == "stop"
        answer = json.loads(text)
        assert set(answer) == {"ok", "n"} and isinstance(answer["ok"], bool) and 0 <= answer["n"] <= 99


def test_a_schema_that_cannot_be_followed_is_a_400_that_says_why(client):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=USER, response_format=form)
    assert caught.value.param == "response_format" and "uniqueItems" in str(caught.value)
