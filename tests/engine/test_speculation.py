"""Guesses change how many forwards a text takes, and nothing else."""

from itertools import pairwise

import pytest
import torch
from engine_fakes import TRAITS, PieceTokenizer, Scripted, is_greedy, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.engine import Engine, Request
from dacheng.engine import speculation as module
from dacheng.engine.lookup import LONGEST, SHORTEST, Lookup
from dacheng.engine.speculation import Speculation
from dacheng.protocols import SamplingParams

TOKENIZER = PieceTokenizer()


@pytest.fixture
def always(monkeypatch):
    """Guesses from the second token on, whatever they cost."""
    monkeypatch.setattr(module, "PLAIN_STEPS", 0)
    monkeypatch.setattr(module, "REMEASURED", 10**9)
    monkeypatch.setattr(module, "TRIAL", 10**9)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(0, 6), st.data())
def test_a_draft_is_what_followed_the_last_time(known, most, data):
    """By definition, with the text growing in pieces between two drafts."""
    lookup = Lookup()
    for length in sorted(data.draw(st.lists(st.integers(1, len(known)), max_size=3))):
        lookup.draft(known[:length], most)
    expected: list[int] = []
    for n in range(min(LONGEST, len(known)), SHORTEST - 1, -1):
        ends = [stop for stop in range(n, len(known)) if known[stop - n : stop] == known[-n:]]
        if ends:
            expected = known[ends[-1] : ends[-1] + most]
            break
    assert lookup.draft(known, most) == expected


def repeating(length: int) -> list[int]:
    return ([5, 9, 1, 7, 3, 200] * length)[:length]


@pytest.mark.parametrize("name", TRAITS)
@pytest.mark.parametrize("budget", [3, 64])
def test_greedy_text_with_guesses(always, name, budget):
    """Random models say little that repeats, so many guesses are wrong; some are right. Tiny pools drop guesses."""
    model = tiny_model(**{"max_positions": 192} | TRAITS[name])
    prompts = [repeating(30), repeating(47), [1, 2, 1, 2, 1], [4]]
    params = SamplingParams(max_tokens=40, temperature=0)
    for cache_tokens in (None, 160):
        engine = Engine(model, max_batch=3, max_tokens_per_step=budget, cache_tokens=cache_tokens, speculate=8)
        for prompt, done in zip(prompts, engine.generate(prompts, params)):
            assert len(done.token_ids) == 40 and is_greedy(model, prompt, done.token_ids)
        if budget == 64 and cache_tokens is None:
            assert engine.metrics["tokens_drafted"] > 0
        assert engine.metrics["tokens_generated"] == 160
        assert all(pool.free == pool.size for pool in engine.cache.pools)


@pytest.mark.parametrize("extra", [{}, {"frequency_penalty": -0.6, "repetition_penalty": 1.05, "logprobs": True}])
def test_sampled_text_is_the_same_with_the_same_seed(always, extra):
    """Each position is drawn as without a guess, from its own place in the request's stream."""
    model = tiny_model(max_positions=192)
    with torch.no_grad():
        model.embed.weight.mul_(0.5)
    params = [
        SamplingParams(max_tokens=60, temperature=0.3, top_p=0.8, seed=seed, top_logprobs=2 * len(extra) // 3, **extra)
        for seed in range(6)
    ]
    prompts = [repeating(20 + i) for i in range(6)]
    plain = Engine(model, TOKENIZER).generate(prompts, params)
    engine = Engine(model, TOKENIZER, speculate=6)
    guessed = engine.generate(prompts, params)
    assert 0 < engine.metrics["tokens_accepted"] < engine.metrics["tokens_drafted"]
    for one, two in zip(plain, guessed):
        assert two.token_ids == one.token_ids and two.text == one.text
        if extra.get("logprobs"):
            assert two.logprobs == pytest.approx(one.logprobs, abs=1e-4)
            assert [[i for i, _ in best] for best in two.top_logprobs] == [[i for i, _ in b] for b in one.top_logprobs]


def test_right_guesses_save_forwards(always):
    engine = Engine(tiny_model(max_positions=192), TOKENIZER, speculate=16, executor=Scripted([65, 66, 67, 68], 258))
    request = Request([65, 66, 67, 68, 65, 66, 67, 68], SamplingParams(max_tokens=64, temperature=0))
    engine.add(request)
    sizes = []
    while engine.has_work:
        (output,) = engine.step()
        sizes.append(len(output.token_ids))
        assert output.text == bytes(output.token_ids).decode()
    assert request.token_ids == [65, 66, 67, 68] * 16 and request.finish_reason == "length"
    assert sizes[0] == 1 and max(sizes[1:4]) >= 5 and len(sizes) < 16  # drafts of 4 grow where they are right
    stats = engine.stats()
    assert stats["spec_decode_num_accepted_tokens"] == 64 - len(sizes)
    assert engine.metrics["tokens_computed"] >= 8 + 63


@pytest.mark.parametrize(("stop", "max_tokens"), [("DA", 64), ("", 11)])
def test_a_text_ends_in_the_middle_of_right_guesses(always, stop, max_tokens):
    script = [65, 66, 67, 68]
    params = SamplingParams(max_tokens=max_tokens, temperature=0, stop=(stop,) if stop else ())
    done = []
    for speculate in (0, 16):
        engine = Engine(tiny_model(max_positions=192), TOKENIZER, speculate=speculate, executor=Scripted(script, 258))
        done += engine.generate(["ABCDABCD" * 3], params)
    assert done[0].text == done[1].text and done[0].token_ids == done[1].token_ids
    assert done[1].finish_reason == ("stop" if stop else "length")
    assert engine.cache.open_slots == 0


def pace(speculation: Speculation, steps: int, *, drafted_s: float, tokens: int) -> list[bool]:
    """Steps of a request that always has a guess; a plain one takes a second. Returns which had drafts."""
    request, found = Request([1, 2, 1, 2, 1]), []
    request.known.append(2)
    request.computed = len(request.known) - 1
    for _ in range(steps):
        speculation.propose([request], 64)
        drafted = bool(request.drafts)
        speculation.note(drafted_s if drafted else 1.0, 1, tokens if drafted else 1, drafted)
        found.append(drafted)
    return found


def test_it_goes_on_while_it_pays():
    """1.5 s for two tokens; one step in 32 measures what one without costs."""
    found = pace(Speculation(8), 200, drafted_s=1.5, tokens=2)
    assert not any(found[: module.PLAIN_STEPS]) and sum(found) >= 200 - module.PLAIN_STEPS - 200 // 32 - 1


def test_it_pauses_when_it_does_not_pay_and_tries_again_ever_less_often():
    speculation = Speculation(8)
    found = pace(speculation, 2000, drafted_s=1.5, tokens=1)
    starts = [i for i in range(1, 2000) if found[i] and not found[i - 1]]
    gaps = [b - a for a, b in pairwise(starts)]
    assert sum(found) < 2000 * 0.02 and len(starts) >= 4
    assert all(b > 1.5 * a for a, b in pairwise(gaps))


def test_no_guesses_while_prompts_are_computed(always):
    """The step is full then, and what a guess brings could not be told from what the prompt cost."""
    engine = Engine(tiny_model(max_positions=192), TOKENIZER, speculate=8, max_tokens_per_step=24,
                    executor=Scripted([65, 66, 67, 68], 258))  # fmt: skip
    engine.add(Request([65, 66, 67, 68] * 2, SamplingParams(max_tokens=60, temperature=0)))
    sizes = [len(engine.step()[0].token_ids) for _ in range(3)]
    assert max(sizes) > 1
    engine.add(Request([70] * 100, SamplingParams(max_tokens=1, temperature=0)))
    during = []
    while engine.scheduler.prompts_due:
        during += [len(output.token_ids) for output in engine.step() if output.request_id == 0]
    assert len(during) >= 4 and set(during) == {1}
    assert len(engine.step()[0].token_ids) > 1


def test_guesses_leave_every_request_its_own_token():
    engine = Engine(tiny_model(max_positions=192), max_batch=4, max_tokens_per_step=5, speculate=8)
    for i in range(4):
        request = Request(repeating(20 + i), SamplingParams(max_tokens=3))
        engine.add(request)
    for _ in range(40):
        engine.speculation.resume = 0
        before = [len(request.known) for request in engine.scheduler.running]
        decoding = [request for request in engine.scheduler.running if request.drafts_allowed]
        served = {output.request_id for output in engine.step()}
        assert {request.id for request in decoding} <= served, before
    assert not engine.has_work
