"""Adapters over HTTP: chosen by name, loaded and let go while the server answers, nothing beyond the given folder."""

from __future__ import annotations

import json
import os

import pytest
from adapter_fakes import drawn
from serve_fakes import running

from dacheng.formats.model_directory import load_model
from dacheng.formats.peft import write_adapter
from dacheng.serve.adapters import serve_adapters
from dacheng.serve.options import EngineOptions, ModelPath
from dacheng.serve.start import start_models

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

USER = [{"role": "user", "content": "the cat sat on the mat"}]


@pytest.fixture(scope="module")
def folder(tiny_directory, tmp_path_factory):
    """adapters/polite, adapters/late, adapters/large (of another model), and one beside the folder, linked into it."""
    root = tmp_path_factory.mktemp("adapters")
    model = load_model(tiny_directory, dtype="float32").model
    for seed, name in enumerate(("polite", "late"), 1):
        write_adapter(root / "adapters" / name, drawn(model, seed), model)
    write_adapter(root / "outside", drawn(model, 3), model)
    os.symlink(root / "outside", root / "adapters" / "link")
    (root / "adapters" / "broken").mkdir()
    (root / "adapters" / "broken" / "adapter_config.json").write_text("{")
    (root / "adapters" / "broken" / "adapter_model.safetensors").write_bytes(b"\x00" * 64)
    other = load_model(tiny_directory, dtype="float32").model
    adapter = drawn(other, 4)
    name = next(iter(adapter.parts))
    adapter.parts[name].a.data = adapter.parts[name].a.data[:, :5].contiguous()
    write_adapter(root / "adapters" / "large", adapter, other)
    return root / "adapters"


@pytest.fixture(scope="module")
def url(tiny_directory, folder):
    options = EngineOptions(max_batch=4, adapters=(("polite", folder / "polite"),))
    served, _ = start_models([ModelPath(tiny_directory, ("tiny",))], options)
    with running(*served, adapters_dir=folder) as found:
        yield found


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def said(client, name):
    found = client.chat.completions.create(model=name, messages=USER, temperature=0, max_tokens=16)
    assert found.model == name
    return found.choices[0].message.content


def post(url, path, body):
    return httpx.post(url + path, json=body, timeout=20)


def test_an_adapter_is_a_model_of_its_own_name(client, url):
    cards = {card["id"]: card for card in httpx.get(f"{url}/v1/models").json()["data"]}
    assert (cards["tiny"]["parent"], cards["tiny"]["root"]) == (None, "tiny")
    assert (cards["polite"]["parent"], cards["polite"]["root"]) == ("tiny", "polite")
    assert said(client, "tiny") != said(client, "polite")
    one = client.embeddings.create(model="tiny", input="the cat").data[0].embedding
    other = client.embeddings.create(model="polite", input="the cat").data[0].embedding
    assert sum(a * b for a, b in zip(one, other)) < 0.999
    assert httpx.get(f"{url}/metrics").text.count('vllm:num_requests_running{model_name="') == 1  # one engine


def test_adapters_are_loaded_and_unloaded_while_it_serves(client, url, folder):
    base, polite = said(client, "tiny"), said(client, "polite")
    answer = post(url, "/v1/load_lora_adapter", {"lora_name": "late", "lora_path": "late"})
    assert answer.status_code == 200 and "late" in answer.text
    late = said(client, "late")
    assert len({base, polite, late}) == 3
    assert (said(client, "tiny"), said(client, "polite")) == (base, polite)
    again = post(url, "/v1/load_lora_adapter", {"lora_name": "late", "lora_path": str(folder / "late")})
    assert again.status_code == 400 and again.json()["error"]["param"] == "lora_name"
    with client.chat.completions.create(
        model="late", messages=USER, temperature=0, max_tokens=64, stream=True
    ) as stream:
        pieces = iter(stream)
        next(pieces)
        assert post(url, "/v1/unload_lora_adapter", {"lora_name": "late"}).status_code == 200
        list(pieces)  # goes on to its end
    with pytest.raises(openai.NotFoundError):
        said(client, "late")
    assert post(url, "/v1/unload_lora_adapter", {"lora_name": "late"}).status_code == 404
    assert post(url, "/v1/load_lora_adapter", {"lora_name": "late", "lora_path": "late"}).status_code == 200
    assert said(client, "late") == late
    post(url, "/v1/unload_lora_adapter", {"lora_name": "late"})


@pytest.mark.parametrize(
    "path", ["../outside", "link", "/etc", ".", "", "nowhere", "a\0b", "broken", "large", "x" * 3000, "polite/../.."]
)
def test_what_is_no_adapter_below_the_folder_is_refused(url, folder, path):
    answer = post(url, "/v1/load_lora_adapter", {"lora_name": "bad", "lora_path": path})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "lora_path"
    assert str(folder) not in answer.text
    assert "bad" not in json.dumps(httpx.get(f"{url}/v1/models").json())


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"lora_path": "late"}, "lora_name"),
        ({"lora_name": "tiny", "lora_path": "late"}, "lora_name"),
        ({"lora_name": " ", "lora_path": "late"}, "lora_name"),
        ({"lora_name": "x" * 300, "lora_path": "late"}, "lora_name"),
        ({"lora_name": "x"}, "lora_path"),
        ({"lora_name": "x", "lora_path": 7}, "lora_path"),
        ({"lora_name": "x", "lora_path": "late", "base_model_name": "polite"}, "base_model_name"),
        ({"lora_name": "x", "lora_path": "late", "surprise": 1}, "surprise"),
    ],
)
def test_bodies_that_say_something_else_are_refused(url, body, param):
    answer = post(url, "/v1/load_lora_adapter", body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_without_a_folder_there_are_no_such_routes(tiny_directory):
    served, _ = start_models([ModelPath(tiny_directory, ("tiny",))], EngineOptions(max_batch=2))
    assert serve_adapters(served[0], ()) == []
    with running(*served) as url:
        assert post(url, "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "late"}).status_code == 404
