"""lm-evaluation-harness against the server says what the engine says in this process.

The first test sends what its `local-completions` sends (lm_eval 0.4, models/openai_completions.py and api_models.py),
and reads the answer as it does; the second, where it is installed, runs its own code.
"""

from __future__ import annotations

import importlib.util

import pytest
from serve_fakes import running

from dacheng.engine import Engine
from dacheng.engine.boundary import encode_pair
from dacheng.formats.model_directory import load_model
from dacheng.serve.client import Client
from dacheng.serve.options import EngineOptions
from dacheng.serve.start import start_model

pytest.importorskip("uvicorn")

PAIRS = [
    ("the cat sat", " on the mat"), ("the cat", " sat on the mat, 大成 若缺"), ("def main():", "\n    return"),
    ("the cat sat on", " the END"), ("🙂 the END", " of the story"), ("of the", " story END"),
    ("the", " cat"), ("the mat,", " 大成"), ("sat on the mat", ", the cat sat"),
]  # fmt: skip
BATCH = 4


@pytest.fixture(scope="module")
def url(tiny_directory):
    model, _ = start_model(tiny_directory, ["tiny"], EngineOptions(max_batch=3))
    with running(model) as found:
        yield found


@pytest.fixture(scope="module")
def expected(tiny_directory):
    loaded = load_model(tiny_directory)
    engine = Engine(loaded.model, loaded.tokenizer)
    return loaded.tokenizer, engine.loglikelihood(PAIRS)


@pytest.mark.parametrize("max_tokens", [1, 0])
def test_what_local_completions_sends(url, expected, max_tokens):
    tokenizer, scores = expected
    client, found = Client(url), []
    encoded = [encode_pair(tokenizer, context, continuation) for context, continuation in PAIRS]
    for start in range(0, len(encoded), BATCH):
        batch = encoded[start : start + BATCH]
        body = {
            "model": "tiny", "prompt": [list(pair.token_ids) for pair in batch], "temperature": 0,
            "max_tokens": max_tokens, "logprobs": 1, "seed": 1234, "echo": True,
        }  # fmt: skip
        choices = sorted(client.json("POST", "/v1/completions", body)["choices"], key=lambda choice: choice["index"])
        assert len(choices) == len(batch)
        for choice, pair in zip(choices, batch):
            end = -1 if max_tokens else None  # the token that was generated is not asked about
            values = choice["logprobs"]["token_logprobs"][pair.score_from : end]
            tops = choice["logprobs"]["top_logprobs"][pair.score_from : end]
            assert len(values) == len(pair.token_ids) - pair.score_from
            found.append((sum(values), all(value == max(top.values()) for value, top in zip(values, tops))))
    for (nats, greedy), (expected_nats, expected_greedy) in zip(found, scores):
        assert nats == pytest.approx(expected_nats, abs=1e-4) and greedy == expected_greedy


@pytest.mark.peer
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval[api]")
def test_the_harness_itself(url, expected):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(base_url=f"{url}/v1/completions", model="tiny", batch_size=BATCH, max_length=256)
    assert model.tokenizer_backend == "remote"  # the tokenizer is asked of the server
    # Where a token that is no white space crosses the boundary, the two cut differently (boundary.encode_pair).
    exact = [i for i, pair in enumerate(PAIRS) if encode_pair(expected[0], *pair).how != "split"]
    asked = [Instance("loglikelihood", {}, PAIRS[i], i) for i in exact]
    scores = [expected[1][i] for i in exact]
    assert len(exact) >= 6
    for found, (nats, greedy) in zip(model.loglikelihood(asked, disable_tqdm=True), scores):
        assert found[0] == pytest.approx(nats, abs=1e-4) and found[1] == greedy
    texts = model.generate_until([Instance("generate_until", {}, ("the cat", {"until": ["\n"], "max_gen_toks": 8}), 0)])
    assert texts == [Client(url).json("POST", "/v1/completions", {
        "model": "tiny", "prompt": "the cat", "max_tokens": 8, "temperature": 0, "stop": ["\n"],
    })["choices"][0]["text"]]  # fmt: skip
