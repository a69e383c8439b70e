"""A beginning that is in the cache is not computed again, a text that lost its blocks is: the tokens are the same."""

import math

import pytest
import torch
from engine_fakes import TRAITS, PieceTokenizer, is_greedy, plain_logits, tiny_model

from dacheng.engine import Engine, Request
from dacheng.engine.readings import Embedding, Scoring
from dacheng.errors import DachengError
from dacheng.protocols import SamplingParams

GREEDY = SamplingParams(max_tokens=24, temperature=0)
SHARED = torch.randint(0, 258, (80,), generator=torch.Generator().manual_seed(4)).tolist()
# Beginnings of different lengths in common, one text twice, and one that shares nothing.
PROMPTS = [
    [*SHARED, 1, 2, 3],
    [*SHARED[:50], 9, 9],
    [*SHARED[:64]],
    [*SHARED[:64]],
    [*SHARED, 1, 2, 3, *SHARED[:20]],
    [7] * 5,
]


def model_of(name: str):
    traits = TRAITS[name]
    if "window" in traits:
        traits = traits | {"window": 37}
    return tiny_model(**{"max_positions": 192} | traits)


def drive(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def assert_nothing_is_held(engine: Engine) -> None:
    assert engine.cache.open_slots == 0
    assert all(pool.free == pool.size and not any(pool.refs) for pool in engine.cache.pools)


@pytest.mark.parametrize("name", TRAITS)
@pytest.mark.parametrize("budget", [7, 200])
def test_greedy_text_after_a_hit(name, budget):
    """One after the other, then all at once, on what the first round left behind."""
    model = model_of(name)
    engine = Engine(model, max_batch=6, max_tokens_per_step=budget)
    alone = [engine.generate([prompt], GREEDY)[0] for prompt in PROMPTS]
    again = engine.generate(PROMPTS, GREEDY)
    assert [int(done.metrics["cached_tokens"]) for done in alone] == [0, 32, 32, 32, 64, 0]
    assert [int(done.metrics["cached_tokens"]) for done in again] == [64, 32, 32, 32, 96, 0]
    for prompt, one, two in zip(PROMPTS, alone, again):
        assert len(one.token_ids) == 24 and is_greedy(model, prompt, one.token_ids)
        assert two.token_ids == one.token_ids
    stats = engine.stats()
    assert stats["prefix_cache_hits"] == 160 + 256 and stats["prefix_cache_queries"] == 2 * sum(map(len, PROMPTS))
    assert stats["prompt_tokens"] == 2 * sum(map(len, PROMPTS)) and stats["generation_tokens"] == 2 * 6 * 24
    assert_nothing_is_held(engine)


@pytest.mark.parametrize("name", TRAITS)
@pytest.mark.parametrize(("cache_tokens", "budget"), [(160, 6), (224, 200)])
def test_greedy_text_after_preemption(name, cache_tokens, budget):
    """A pool that holds one text and a half, without and with hits among those who share it."""
    model = model_of(name)
    for prefix_cache in (False, True):
        engine = Engine(
            model, max_batch=6, max_tokens_per_step=budget, cache_tokens=cache_tokens, prefix_cache=prefix_cache
        )
        prompts = [[i, *prompt] for i, prompt in enumerate(PROMPTS)] if not prefix_cache else PROMPTS
        for prompt, done in zip(prompts, engine.generate(prompts, GREEDY)):
            assert len(done.token_ids) == 24 and is_greedy(model, prompt, done.token_ids)
        assert bool(engine.stats()["prefix_cache_hits"]) == prefix_cache or engine.stats()["preemptions"]
        assert engine.stats()["kv_cache_usage"] == 0
        assert_nothing_is_held(engine)


def test_the_last_to_come_gives_way_and_is_the_first_to_return():
    engine = Engine(tiny_model(max_positions=192), max_batch=3, cache_tokens=128, prefix_cache=False)
    first, second, third, fourth = (
        Request([i] * length, SamplingParams(max_tokens=60, temperature=0))
        for i, length in enumerate((20, 30, 25, 5), 1)
    )
    for request in (first, second, third, fourth):
        engine.add(request)
    seen = []
    while engine.has_work:
        engine.step()
        state = [engine.scheduler.running.copy(), list(engine.scheduler.waiting)]
        if not seen or state != seen[-1]:
            seen.append(state)
    # Four blocks: 1 + 1 + 1, the second grows to 2, and then the first needs one as well.
    assert seen[0] == [[first, second, third], [fourth]]
    assert seen[1] == [[first, second], [third, fourth]]
    assert third.preemptions >= 1 and first.preemptions == 0
    for request in (first, second, third, fourth):
        assert request.finish_reason == "length" and len(request.token_ids) == 60
        assert is_greedy(engine.model, request.prompt_token_ids, request.token_ids)


def test_sampled_text_survives_preemption():
    sampled = SamplingParams(max_tokens=50, temperature=0.9, top_p=0.9, seed=3, presence_penalty=0.5, logprobs=True)
    prompts = [[i] * 30 for i in range(4)]
    texts = []
    for cache_tokens in (None, 128):
        engine = Engine(tiny_model(max_positions=192), max_batch=4, cache_tokens=cache_tokens)
        texts.append([done.token_ids for done in engine.generate(prompts, sampled)])
    assert engine.stats()["preemptions"] > 0 and texts[0] == texts[1]


def test_readings_survive_preemption_and_hits():
    model = tiny_model(max_positions=192)
    engine = Engine(model, max_batch=3, max_tokens_per_step=16, cache_tokens=192)
    ids = [*SHARED, *SHARED[:30]]
    writer = Request([1, 2, 3], SamplingParams(max_tokens=120, temperature=0))
    engine.add(writer)
    scores = [Scoring(ids, score_from=70), Scoring(ids, score_from=1)]
    vectors = [Embedding(ids[:40]), Embedding(ids[:40])]
    for reading in (*scores, *vectors):
        engine.add(reading)
    for step in range(40):
        engine.step()
        if step % 4 == 3 and engine.scheduler.running:
            engine.scheduler._preempt(engine.scheduler.running[-1])
    drive(engine)
    logprobs = torch.log_softmax(plain_logits(model, ids), -1)
    for reading, start in zip(scores, (70, 1)):
        expected = sum(float(logprobs[i - 1, ids[i]]) for i in range(start, len(ids)))
        assert reading.nats == pytest.approx(expected, abs=1e-3)
    assert vectors[0].vector() == pytest.approx(vectors[1].vector(), abs=1e-5)
    assert engine.stats()["preemptions"] >= 5
    roomy = Engine(model)
    for _ in range(2):
        again = Scoring(ids, score_from=70)
        roomy.add(again)
        drive(roomy)
        assert again.nats == pytest.approx(scores[0].nats, abs=1e-3)
    assert roomy.stats()["prefix_cache_hits"] == 64  # of 69 tokens that need not be looked at


def test_prompt_logprobs_look_at_all_of_a_cached_prompt():
    model = tiny_model(max_positions=192)
    engine = Engine(model, max_tokens_per_step=20)
    params = SamplingParams(max_tokens=3, temperature=0, prompt_logprobs=2)
    expected = torch.log_softmax(plain_logits(model, SHARED), -1)
    for _ in range(2):
        request = Request(SHARED, params)
        engine.add(request)
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        found = outputs[0].prompt_logprobs
        assert found == request.completion().prompt_logprobs and outputs[1].prompt_logprobs is None
        assert outputs[0].cached_tokens == 0
        assert found[0] is None and len(found) == len(SHARED)
        for position, best in enumerate(found[1:], 1):
            values, ids = expected[position - 1].topk(2)
            assert [i for i, _ in best[:2]] == ids.tolist()
            assert [x for _, x in best[:2]] == pytest.approx(values.tolist(), abs=1e-4)
            own = dict(best)[SHARED[position]]
            assert own == pytest.approx(float(expected[position - 1, SHARED[position]]), abs=1e-4)
            assert len(best) == 2 + (SHARED[position] not in ids)
    only_own = engine.generate([SHARED], SamplingParams(max_tokens=1, prompt_logprobs=0))[0].prompt_logprobs
    assert [best[0][0] for best in only_own[1:]] == SHARED[1:] and all(len(best) == 1 for best in only_own[1:])


def test_another_tenant_and_other_weights_find_nothing():
    model = tiny_model(max_positions=192)
    engine = Engine(model)

    def cached(salt: str) -> int:
        request = Request(SHARED, GREEDY, salt=salt)
        engine.add(request)
        drive(engine)
        assert is_greedy(model, SHARED, request.token_ids)
        return request.cached_tokens

    assert [cached("a"), cached("a"), cached("b"), cached(""), cached("b")] == [0, 64, 0, 0, 64]
    with torch.no_grad():
        model.embed.weight.mul_(-0.5)
    engine.weights_changed()
    assert [cached("a"), cached("a")] == [0, 64]


def test_a_preempted_request_finds_its_own_text_again():
    engine = Engine(tiny_model(max_positions=192), max_batch=2, cache_tokens=256)
    request = Request(SHARED, SamplingParams(max_tokens=60, temperature=0))
    engine.add(request)
    for _ in range(30):
        engine.step()
    engine.scheduler._preempt(request)
    before = engine.metrics["tokens_computed"]
    engine.step()
    assert engine.metrics["tokens_computed"] - before == 110 - 96  # 80 and 30 known, three whole blocks found
    drive(engine)
    assert request.cached_tokens == 0  # of the prompt, when it came
    assert is_greedy(engine.model, SHARED, request.token_ids)


def test_what_the_cache_can_never_hold_is_refused_by_name():
    engine = Engine(tiny_model(max_positions=192), PieceTokenizer(), cache_tokens=64)
    with pytest.raises(DachengError) as refusal:
        engine.add(Request([1] * 64))
    assert refusal.value.field == "cache_tokens" and refusal.value.value == 64
    assert "64 tokens" in str(refusal.value) and "63 tokens" in str(refusal.value.remedy)
    (done,) = engine.generate([[1] * 60], SamplingParams(max_tokens=50, temperature=0, ignore_eos=True))
    assert done.finish_reason == "length" and len(done.token_ids) == 4  # alone, it fills the cache to its end
    assert math.isclose(engine.stats()["kv_cache_usage"], 0.0)
