"""With `deterministic`, log-probabilities are equal to the bit, whatever else runs and however a text is computed."""

from dataclasses import replace

import pytest
import torch
from engine_fakes import TRAITS, PieceTokenizer, is_greedy, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_draft_model import like
from test_fused_executor import packed_model

from dacheng.engine import Engine, Request
from dacheng.engine import speculation as module
from dacheng.engine.deterministic import TILE, Tiled
from dacheng.engine.executor import Eager
from dacheng.engine.fused import FusedCPU
from dacheng.errors import UsageError
from dacheng.nn.moe import MoETraits
from dacheng.ops import native
from dacheng.protocols import SamplingParams

TOKENIZER = PieceTokenizer()
PARAMS = [
    SamplingParams(max_tokens=10, temperature=0, logprobs=True, top_logprobs=3, prompt_logprobs=1, ignore_eos=True),
    SamplingParams(max_tokens=10, temperature=0.9, top_p=0.9, seed=5, logprobs=True, ignore_eos=True),
    SamplingParams(max_tokens=10, temperature=0, repetition_penalty=1.2, logprobs=True, ignore_eos=True),
]
PROMPTS = [list(range(36)), [7, 8, 9] * 5, [1], [*range(33), 3], [*range(33), 4]]
MODELS = {name: tiny_model(**TRAITS[name]) for name in ("plain", "gqa", "all")}


@pytest.fixture(autouse=True)
def guesses_at_once(monkeypatch):
    monkeypatch.setattr(module, "PLAIN_STEPS", 0)
    monkeypatch.setattr(module, "PAUSE", 3)


def numbers(request: Request) -> tuple:
    return request.token_ids, request.logprobs, request.top_logprobs, request.prompt_logprobs


def run(engine: Engine, order: list[int], preempt: int = 0) -> dict[int, tuple]:
    requests = {i: Request(PROMPTS[i], PARAMS[i % 3]) for i in order}
    for request in requests.values():
        engine.add(request)
    steps = 0
    while engine.has_work:
        engine.step()
        steps += 1
        if steps == preempt and engine.scheduler.running:
            engine.scheduler._preempt(engine.scheduler.running[-1])
    return {i: numbers(request) for i, request in requests.items()}


ALONE: dict[tuple, tuple] = {}


def alone(name: str, kv_dtype: str | None, i: int) -> tuple:
    if (name, kv_dtype, i) not in ALONE:
        engine = Engine(MODELS[name], TOKENIZER, deterministic=True, kv_dtype=kv_dtype)
        ALONE[name, kv_dtype, i] = run(engine, [i])[i]
    return ALONE[name, kv_dtype, i]


SITUATIONS = st.tuples(
    st.sampled_from(sorted(MODELS)), st.permutations(range(len(PROMPTS))), st.integers(1, 5), st.integers(0, 60),
    st.integers(0, 5), st.booleans(), st.sampled_from([None, "int8"]), st.sampled_from([None, 64, 160]),
    st.integers(0, 9),
)  # fmt: skip


def check_bits(situation: tuple) -> None:
    """Batches, chunks, shared beginnings, a pool that is too small, preemption, guesses of both kinds."""
    name, order, max_batch, extra, speculate, drafted, kv_dtype, cache_tokens, preempt = situation
    draft = like(MODELS[name], 0.01) if drafted and speculate else None
    engine = Engine(
        MODELS[name], TOKENIZER, deterministic=True, max_batch=max_batch, max_tokens_per_step=max_batch + extra,
        cache_tokens=cache_tokens, speculate=speculate, draft=draft, kv_dtype=kv_dtype,
    )  # fmt: skip
    for again in (False, True):  # the second time, beginnings are found
        for i, found in run(engine, list(order)[: 3 if again else None], preempt).items():
            assert found == alone(name, kv_dtype, i)


@settings(max_examples=4, deadline=None)
@given(SITUATIONS)
def test_log_probabilities_are_equal_to_the_bit(situation):
    check_bits(situation)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(SITUATIONS)
def test_log_probabilities_are_equal_to_the_bit_in_many_situations(situation):
    check_bits(situation)


def test_it_says_what_eager_says():
    for name, traits in list(TRAITS.items())[2:]:
        model = tiny_model(**traits)
        (done,) = Engine(model, deterministic=True).generate([PROMPTS[1]], replace(PARAMS[0], max_tokens=4))
        assert is_greedy(model, PROMPTS[1], done.token_ids), name
        (plain,) = Engine(model).generate([PROMPTS[1]], replace(PARAMS[0], max_tokens=4))
        assert done.logprobs == pytest.approx(plain.logprobs, abs=1e-4)


@pytest.mark.parametrize("speculate", [0, 5])
def test_the_compiled_executor(speculate):
    if native.library() is None:
        pytest.skip(f"no compiled kernels: {native.why_not()}")
    model = packed_model()
    prompts = [[i % 70 for i in prompt] for prompt in PROMPTS]
    params = [replace(PARAMS[i % 3], ignore_eos=False) for i in range(len(prompts))]

    def engine(**more) -> Engine:
        return Engine(model, deterministic=True, executor=FusedCPU(model), speculate=speculate, **more)

    def numbers_of(engine: Engine, which: list[int]) -> list[tuple]:
        done = engine.generate([prompts[i] for i in which], [params[i] for i in which])
        return [(one.token_ids, one.logprobs, one.top_logprobs, one.prompt_logprobs) for one in done]

    expected = [numbers_of(engine(), [i])[0] for i in range(len(prompts))]
    for more in ({}, {"max_batch": 3, "max_tokens_per_step": 7}, {"max_batch": 4, "cache_tokens": 128}):
        shared = engine(**more)
        for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
            assert numbers_of(shared, order) == [expected[i] for i in order]
        assert shared.executor.fallbacks == 0


def test_a_tile_is_always_full(monkeypatch):
    seen = set()
    model = tiny_model()
    head, forward = model.head, model.forward
    monkeypatch.setattr(model, "head", lambda hidden: (seen.add(("head", len(hidden))), head(hidden))[1])
    monkeypatch.setattr(model, "forward", lambda *a: (seen.add(("model", a[0].shape[1])), forward(*a))[1])
    Engine(model, TOKENIZER, deterministic=True, speculate=3).generate(PROMPTS, PARAMS[0])
    assert seen == {("head", TILE), ("model", TILE)}


def test_what_cannot_be_made_deterministic_is_refused(monkeypatch):
    experts = tiny_model(moe=MoETraits(experts=4, experts_per_token=2, expert_width=16))
    with pytest.raises(UsageError, match="experts"):
        Engine(experts, deterministic=True)

    class Other:
        name = "other"

    with pytest.raises(UsageError, match="executor"):
        Engine(MODELS["plain"], deterministic=True, executor=Other())
    assert type(Engine(MODELS["plain"], deterministic=True, executor=Eager(MODELS["plain"])).executor) is Tiled
    model = tiny_model()
    mean = model.norm.forward
    monkeypatch.setattr(model.norm, "forward", lambda x: mean(x) + 1e-6 * x.mean())
    with pytest.raises(UsageError, match="neighbours"):
        Engine(model, deterministic=True)
    if native.library() is not None:
        packed = packed_model()
        with pytest.raises(UsageError, match="kv_dtype"):
            Engine(packed, deterministic=True, executor=FusedCPU(packed), kv_dtype="int8")


def test_without_it_a_sum_takes_another_way_somewhere():
    """Else there would be nothing to test here."""
    with torch.no_grad():
        weight, rows = torch.randn(1536, 576), torch.randn(64, 576)
        whole = torch.nn.functional.linear(rows, weight)
        assert not torch.equal(whole[:1], torch.nn.functional.linear(rows[:1], weight))
