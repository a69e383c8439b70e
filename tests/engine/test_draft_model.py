"""A draft model changes how many forwards a text takes, and nothing else: not a greedy text, not a distribution."""

import itertools
from dataclasses import replace

import pytest
import torch
from engine_fakes import TRAITS, PieceTokenizer, is_greedy, plain_logits, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.engine import Engine, Request
from dacheng.engine import speculation as module
from dacheng.engine.adjust import adjusted
from dacheng.engine.sampler import probabilities, verify
from dacheng.engine.state import SamplerState
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.protocols import SamplingParams

TOKENIZER = PieceTokenizer()
GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Guesses from the second token on, whatever they cost."""
    monkeypatch.setattr(module, "PLAIN_STEPS", 0)
    monkeypatch.setattr(module, "REMEASURED", 10**9)
    monkeypatch.setattr(module, "TRIAL", 10**9)


def like(model: Decoder, noise: float = 0.02) -> Decoder:
    """One that mostly, but not always, would say the same."""
    draft = Decoder(model.traits).eval()
    draft.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return draft


def p_value(observed: list[int], expected: list[float]) -> float:
    """Of Pearson's chi-squared test."""
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected))
    half = torch.tensor([(len(observed) - 1) / 2, statistic / 2], dtype=torch.float64)
    return torch.special.gammaincc(*half).item()


def all_free(engine: Engine) -> bool:
    caches = (engine.cache, engine.speculation.drafter.cache)
    return all(pool.free == pool.size and not pool._tainted for cache in caches for pool in cache.pools)


@pytest.mark.parametrize(("name", "budget"), [*((name, 64) for name in TRAITS), ("gqa", 3), ("all", 3)])
def test_greedy_text(name, budget):
    model = tiny_model(**TRAITS[name])
    draft = like(model)
    prompts = [list(range(40, 70)), [7] * 47, [1, 2, 1, 2, 1], [4]]
    for cache_tokens in (None, 96):
        engine = Engine(
            model, max_batch=3, max_tokens_per_step=budget, cache_tokens=cache_tokens, speculate=5, draft=draft
        )
        for prompt, done in zip(prompts, engine.generate(prompts, GREEDY)):
            assert len(done.token_ids) == 20 and is_greedy(model, prompt, done.token_ids)
        if budget == 64 and cache_tokens is None:
            assert 0 < engine.metrics["tokens_accepted"] < engine.metrics["tokens_drafted"]
            assert engine.metrics["steps"] < 40
        assert engine.metrics["tokens_generated"] == 80 and all_free(engine)


MODEL = tiny_model(kv_heads=2, window=9, window_pattern="SL", max_positions=160)
DRAFT = like(MODEL, 0.01)
OTHER = tiny_model(5, width=16, layers=1, heads=2, max_positions=64)  # knows nothing, and only short texts
REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 60), st.integers(1, 25), st.sampled_from([1.0, 1.3]), st.sampled_from([0.0, 0.7]),
        st.integers(0, 1), st.booleans(),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@settings(max_examples=8, deadline=None)
@given(REQUESTS, st.integers(1, 4), st.integers(1, 60), st.integers(1, 6), st.sampled_from([DRAFT, OTHER]), st.data())
def test_whatever_is_asked_and_whoever_guesses(asked, max_batch, budget, speculate, draft, data):
    """Penalties, bounds, seeds, shared beginnings, cancellation, preemption and a pool that is too small."""
    prompts = [[9 - 8 * first, *range(10, 10 + length)] for length, _, _, _, first, _ in asked]
    params = [
        SamplingParams(
            max_tokens=max_tokens, temperature=0.5 * sampled, seed=i, repetition_penalty=repetition,
            presence_penalty=presence, min_tokens=max_tokens // 2, stop_token_ids=(65,),
        )
        for i, (_, max_tokens, repetition, presence, _, sampled) in enumerate(asked)
    ]  # fmt: skip
    expected = Engine(MODEL, TOKENIZER).generate(prompts, params)
    engine = Engine(
        MODEL, TOKENIZER, max_batch=max_batch, max_tokens_per_step=max(max_batch, budget), speculate=speculate,
        draft=draft, cache_tokens=data.draw(st.sampled_from([96, 160, 1000])),
    )  # fmt: skip
    requests = [Request(prompt, own) for prompt, own in zip(prompts, params)]
    for request in requests:
        engine.add(request)
    cancelled = data.draw(st.sets(st.integers(0, len(requests) - 1), max_size=1))
    steps = 0
    while engine.has_work:
        engine.step()
        steps += 1
        if steps == 4:
            for i in cancelled:
                engine.cancel(requests[i].id)
        if steps == 6 and engine.scheduler.running:
            engine.scheduler._preempt(engine.scheduler.running[-1])
    assert all_free(engine)
    for i, (request, alone) in enumerate(zip(requests, expected)):
        if i in cancelled:
            assert request.token_ids == alone.token_ids[: len(request.token_ids)]
        elif len(request.known) < 96:
            assert request.token_ids == alone.token_ids and request.completion().text == alone.text


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=3, temperature=1.3),
        SamplingParams(max_tokens=3, temperature=0.8, top_k=4, top_p=0.9, repetition_penalty=1.3, presence_penalty=0.4),
    ],
)
def test_a_sampled_text_has_the_distribution_of_the_model(params):
    """Of 5³ texts, against their exact probabilities. Two wrong drafts in three at first, so every branch is taken."""
    model = tiny_model(vocab_size=5, width=16, heads=2)
    with torch.no_grad():
        model.embed.weight.mul_(0.5)
    draft = like(model, 0.3)
    prompt, times = [3, 1], 4000

    def next_probabilities(text: tuple[int, ...]) -> list[float]:
        state = SamplerState(params, 0, 5, prompt)
        for token in text:
            state.note(token)
        row = probabilities(adjusted(plain_logits(model, [*prompt, *text])[-1:], [state]), [params])[0]
        return (row / row.sum()).tolist()

    expected = {
        (a, b, c): next_probabilities(())[a] * next_probabilities((a,))[b] * next_probabilities((a, b))[c]
        for a, b, c in itertools.product(range(5), repeat=3)
    }
    engine = Engine(model, max_batch=500, speculate=2, draft=draft, seed=11, cache_tokens=32 * 500)
    done = engine.generate([prompt] * times, params)
    counts = dict.fromkeys(expected, 0)
    for completion in done:
        counts[tuple(completion.token_ids)] += 1
    assert all(expected[text] > 0 for text, count in counts.items() if count)
    common = [text for text in expected if expected[text] * times >= 5]
    rare = sum(expected[text] for text in expected if text not in common) * times
    observed = [counts[text] for text in common] + [sum(counts[text] for text in expected if text not in common)]
    assert p_value(observed, [expected[text] * times for text in common] + [rare + 1e-9]) > 1e-3
    assert 0.2 < engine.metrics["tokens_accepted"] / engine.metrics["tokens_drafted"] < 0.95


def test_rejection_sampling_gives_p_whatever_q():
    p_V, q_V = torch.tensor([0.5, 0.2, 0.3, 0.0]), torch.tensor([0.1, 0.6, 0.0, 0.3])
    state = SamplerState(SamplingParams(), 3, 4, ())
    generator, counts = torch.Generator().manual_seed(4), [0] * 4
    for token in torch.multinomial(q_V, 20_000, replacement=True, generator=generator).tolist():
        row = p_V.clone()
        taken = verify(row, (token, q_V), state)
        counts[taken if taken >= 0 else int(torch.multinomial(row, 1, generator=generator))] += 1
    assert counts[3] == 0
    assert p_value(counts[:3], [10_000, 4_000, 6_000]) > 1e-3
    row = p_V.clone()
    assert all(verify(row, (2, p_V), state) == 2 for _ in range(100))  # q = p: always taken


def test_the_same_model_is_always_right_and_saves_forwards():
    for params in (GREEDY, replace(GREEDY, temperature=0.7, top_p=0.9)):
        engine = Engine(MODEL, TOKENIZER, speculate=4, draft=MODEL)
        (done,) = engine.generate([[5] * 40], params)
        assert len(done.token_ids) == 20
        assert engine.metrics["tokens_accepted"] >= 0.95 * engine.metrics["tokens_drafted"] > 0
        assert engine.metrics["steps"] <= 7


def test_a_beginning_that_the_draft_model_knows_is_not_read_again():
    engine = Engine(MODEL, TOKENIZER, speculate=4, draft=DRAFT)
    read = []
    run = engine.speculation.drafter.executor.run
    engine.speculation.drafter.executor.run = lambda plan, cache: (read.append(plan.tokens), run(plan, cache))[1]
    for _ in range(2):
        engine.generate([list(range(70))], GREEDY)
    assert max(read) == read[0] == 71 and sorted(read)[-2] <= 71 - 64


def test_a_draft_model_that_breaks_or_is_too_small_leaves_the_text_alone():
    broken = like(MODEL)
    with torch.no_grad():
        broken.embed.weight[12] = float("nan")
    prompt = [*range(100, 155), 12]
    expected = Engine(MODEL, TOKENIZER).generate([prompt], GREEDY)[0].token_ids
    for draft, why in ((broken, "drafts_broken"), (OTHER, "drafts_too_long")):
        engine = Engine(MODEL, TOKENIZER, speculate=4, draft=draft)
        assert engine.generate([prompt], GREEDY)[0].token_ids == expected
        assert engine.stats()[f"spec_decode_{why}"] > 0 and all_free(engine)


def test_another_vocabulary_is_refused():
    with pytest.raises(UsageError) as refusal:
        Engine(MODEL, draft=tiny_model(vocab_size=257), speculate=4)
    assert refusal.value.field == "draft" and "258" in str(refusal.value)
    with pytest.raises(UsageError, match="speculate"):
        Engine(MODEL, draft=DRAFT)


def test_the_cache_of_the_draft_model_counts():
    """cache_bytes are those of both."""
    alone, both = (Engine(MODEL, cache_bytes=10**6, speculate=4, draft=draft) for draft in (None, DRAFT))
    assert both.cache.max_tokens == pytest.approx(alone.cache.max_tokens / 2, abs=32)
