"""Several models in one process: names, memory, turns, metrics, health; and the options that engines take."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from serve_fakes import running

from dacheng.engine.turns import Turns
from dacheng.errors import DachengError, UsageError
from dacheng.formats.model_directory import load_model, save_model
from dacheng.formats.shards import weight_files
from dacheng.serve import start
from dacheng.serve.client import Client
from dacheng.serve.memory import divide, weight_bytes
from dacheng.serve.options import EngineOptions, ModelPath, check_names, named

pytest.importorskip("uvicorn")

MIB = 1 << 20


def two(directory) -> list[ModelPath]:
    return [ModelPath(directory, ("first", "alias")), ModelPath(directory, ("second",))]


def test_each_model_answers_under_its_names_and_has_its_own_figures(tiny_directory):
    models, notes = start.start_models(two(tiny_directory), EngineOptions(max_batch=2))
    assert any(note.startswith("second: ") for note in notes) and "memory" in notes[-1]
    with torch.no_grad():
        models[1].engine.engine.model.embed.weight.neg_()
    body = {"prompt": "the cat", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    with running(*models) as url:
        client = Client(url)
        assert [card["id"] for card in client.json("GET", "/v1/models")["data"]] == ["first", "alias", "second"]
        texts = {}
        for name in ("first", "alias", "second"):
            texts[name] = client.json("POST", "/v1/completions", body | {"model": name})["choices"][0]["text"]
        assert texts["first"] == texts["alias"] != texts["second"]
        metrics = client.request("GET", "/metrics")[2].decode()
        for name, tokens in (("first", 24), ("second", 12)):
            assert f'vllm:generation_tokens_total{{model_name="{name}"}} {tokens}' in metrics
        together: list[str] = []

        def ask(name):
            together.append(client.json("POST", "/v1/completions", body | {"model": name})["choices"][0]["text"])

        threads = [threading.Thread(target=ask, args=(name,)) for name in ("first", "second") * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(together) == sorted([texts["first"], texts["second"]] * 4)
        models[1].engine._state = "dead"
        models[1].engine._tell(lambda: (_ for _ in ()).throw(SystemExit))
        models[1].engine._thread.join(5)
        assert client.request("GET", "/health")[0] == 503  # one that is gone is enough


def test_turns_go_round_in_the_order_of_asking():
    turns, order = Turns(), list[int]()
    together = 0

    def work(k):
        nonlocal together
        for _ in range(50):
            with turns:
                together += 1
                assert together == 1
                order.append(k)
                time.sleep(0.0005)
                together -= 1

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    middle = order[10:130]
    assert len(order) == 150 and max(middle.count(k) for k in range(3)) - min(middle.count(k) for k in range(3)) <= 6


def test_turns_are_given_on_when_a_step_raises():
    turns = Turns()
    for _ in range(2):
        with pytest.raises(ValueError), turns:
            raise ValueError
    with turns:
        pass


def test_the_room_for_keys_and_values_is_divided():
    assert divide(100 * MIB, [MIB, 2 * MIB], 16) == [16 * MIB, 32 * MIB]
    small, large = divide(24 * MIB, [MIB, 2 * MIB], 16)
    assert small >= MIB and large >= 2 * MIB and 23 * MIB < small + large <= 24 * MIB
    assert large == pytest.approx(2 * small, abs=2)
    assert divide(3 * MIB, [MIB, 2 * MIB], 1) == [MIB, 2 * MIB]
    with pytest.raises(DachengError, match="2 models"):
        divide(2 * MIB, [MIB, 2 * MIB], 16)


def test_models_that_fit_alone_and_not_together_are_refused_before_they_are_read(tiny_directory, monkeypatch):
    from dacheng.serve.memory import PROCESS

    one = start._weights(tiny_directory, EngineOptions())
    monkeypatch.setattr(start, "_load", lambda *_: pytest.fail("read"))
    with pytest.raises(DachengError) as caught:
        start.start_models(two(tiny_directory), memory=PROCESS + one + one // 2)
    assert caught.value.field == "model"


def test_what_a_process_may_take_bounds_its_cache(tiny_directory):
    from dacheng.serve.memory import PROCESS

    weights = 2 * start._weights(tiny_directory, EngineOptions())
    wide, _ = start.start_models(two(tiny_directory), EngineOptions(max_batch=64))
    tight, _ = start.start_models(two(tiny_directory), EngineOptions(max_batch=64), memory=PROCESS + weights + 8 * MIB)
    tokens = [[model.engine.engine.cache.max_tokens for model in models] for models in (wide, tight)]
    per_token = sum(layer.bytes_per_token(4) for layer in wide[0].engine.engine.model.cache_spec())
    assert sum(tokens[1]) < sum(tokens[0]) and tokens[1][0] == tokens[1][1] > 512
    assert sum(tokens[1]) * per_token <= 8 * MIB
    with pytest.raises(DachengError, match="keys and values"):
        start.start_models(two(tiny_directory), memory=PROCESS + weights + MIB // 4)


def test_weights_that_are_widened_are_counted_as_they_will_be(tiny_directory, tmp_path):
    loaded = load_model(tiny_directory)
    narrow = save_model(tmp_path / "bf16", loaded.model, loaded.tokenizer, dtype="bfloat16")
    wide = weight_bytes(tiny_directory, False)
    assert weight_bytes(narrow, False, widened=True) == wide == 2 * weight_bytes(narrow, False)
    assert wide < sum((tiny_directory / file).stat().st_size for file in weight_files(tiny_directory))


def test_names_of_models_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b").mkdir()
    assert named("small=models/x", "--model") == ("small", "models/x")
    assert named("models/x", "--model") == (None, "models/x")
    assert named("models/size=3", "--model") == (None, "models/size=3")
    assert named("a=b", "--model") == (None, "a=b")
    for half in ("=x", "x="):
        with pytest.raises(UsageError):
            named(half, "--model")
    twice = [ModelPath(Path("x"), ("m",)), ModelPath(Path("y"), ("m",))]
    with pytest.raises(UsageError, match="one name"):
        check_names(twice, EngineOptions())
    with pytest.raises(UsageError, match="one name"):
        check_names(twice[:1], EngineOptions(adapters=(("m", Path("z")),)))
    apart = [ModelPath(Path("x"), ("m",)), ModelPath(Path("y"), ("n",))]
    check_names(apart, EngineOptions())
    with pytest.raises(UsageError, match="belongs to one model"):
        check_names(apart, EngineOptions(template="chatml"))


def test_options_survive_the_way_to_another_process_and_refuse_nonsense():
    options = EngineOptions(
        max_batch=3, kv_dtype="int8", draft_model=Path("d"), speculate=4, adapters=(("a", Path("b")),)
    )
    assert EngineOptions.from_json(json.loads(json.dumps(options.to_json()))) == options
    for wrong in (
        {"max_batch": 0}, {"kv_dtype": "int3"}, {"weights_memory": "vast"}, {"draft_model": Path("d")},
        {"adapters": (("a", Path("x")), ("a", Path("y")))},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            EngineOptions(**wrong)
