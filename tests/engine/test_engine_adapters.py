"""One engine, several adapters: each request gets what it would get alone."""

from __future__ import annotations

import asyncio
import copy

import pytest
import torch
from adapter_fakes import drawn
from engine_fakes import AllLogits, plain_logits, tiny_model

from dacheng.adapt import AdapterBank, attach, rows_of
from dacheng.engine import Engine, Request
from dacheng.engine.async_engine import AsyncEngine
from dacheng.engine.executor import Eager
from dacheng.engine.fused import FusedCPU
from dacheng.engine.readings import Embedding, Scoring
from dacheng.errors import DachengError
from dacheng.formats.model_directory import load_model
from dacheng.formats.packages import MODELS, package_file
from dacheng.formats.peft import write_adapter
from dacheng.nn.contexts import DenseCausal
from dacheng.ops import native
from dacheng.protocols import SamplingParams

GREEDY = SamplingParams(max_tokens=12, temperature=0)
NAMES = ("", "one", "two", "dora", "one", "")


def texts(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 250, (17 + 9 * i,), generator=generator).tolist() for i in range(count)]


def with_bank(model, bank=None):
    bank = bank or AdapterBank(model)
    bank.install("one", drawn(model, 1))
    bank.install("two", drawn(model, 2, targets=("q_proj", "down_proj"), rank=2, use_rslora=True))
    bank.install("dora", drawn(model, 3, targets=("v_proj", "o_proj"), use_dora=True))
    return bank


def finish(engine, requests):
    for request in requests:
        engine.add(request)
    while engine.has_work:
        engine.step()
    assert all(request.error is None for request in requests)
    return requests


def alone(model, adapter, ids, count):
    """Greedy ids of a model with one adapter for all rows, without an engine, and the smallest gap to a runner-up."""
    own = copy.deepcopy(model)
    if adapter is not None:
        rows_of(own, make=True).default = attach(own, adapter)
    known, gap = list(ids), float("inf")
    for _ in range(count):
        top = plain_logits(own, known)[-1].topk(2)
        gap = min(gap, float(top.values[0] - top.values[1]))
        known.append(int(top.indices[0]))
    return known[len(ids) :], gap


@pytest.mark.parametrize("more", [{}, {"speculate": 3}, {"cache_tokens": 128}], ids=["plain", "guesses", "preempted"])
def test_a_mixed_batch_gives_each_what_it_gets_alone(more):
    """Chunks of prompts and single tokens, in a small budget: base and three adapters in the same steps."""
    model = tiny_model(kv_heads=2, tied_head=False)
    bank = with_bank(model)
    engine = Engine(model, adapters=bank, max_batch=6, max_tokens_per_step=20, **more)
    prompts = texts(len(NAMES))
    requests = finish(engine, [Request(ids, GREEDY, adapter=name) for ids, name in zip(prompts, NAMES)])
    plain = tiny_model(kv_heads=2, tied_head=False)
    made = {
        "": None,
        "one": drawn(plain, 1),
        "two": drawn(plain, 2, targets=("q_proj", "down_proj"), rank=2, use_rslora=True),
        "dora": drawn(plain, 3, targets=("v_proj", "o_proj"), use_dora=True),
    }
    assert (engine.stats()["preemptions"] > 0) is ("cache_tokens" in more)
    answers = []
    for request, ids, name in zip(requests, prompts, NAMES):
        expected, gap = alone(plain, made[name], ids, 12)
        assert gap > 1e-4  # otherwise the comparison means nothing
        assert request.token_ids == expected, name
        answers.append(alone(plain, None, ids, 12)[0] == expected)
    assert answers == [not name for name in NAMES]  # each adapter says something else than the base


def test_rows_of_the_base_keep_their_bits():
    model, ids = tiny_model(), texts(1)[0]
    (expected,) = finish(Engine(model), [AllLogits(ids)])
    bank = with_bank(model)
    (same,) = finish(Engine(model, adapters=bank), [AllLogits(ids)])
    assert torch.equal(torch.cat(expected.logits), torch.cat(same.logits))
    tokens, positions = torch.tensor([ids, ids]), torch.arange(len(ids)).expand(2, -1)
    with torch.no_grad(), bank.rows.use(torch.tensor([[0], [2]]).expand(2, len(ids))):
        mixed = model.head(model(tokens, positions, DenseCausal()))
    with torch.no_grad():
        base = model.head(model(tokens, positions, DenseCausal()))
    assert torch.equal(mixed[0], base[0]) and not torch.equal(mixed[1], base[1])


def test_an_adapted_head_reads_the_rows_that_are_wanted():
    """Logits of a few rows only: each by its own adapter of the head."""
    model = tiny_model(tied_head=False)
    bank, ids = AdapterBank(model), texts(1)[0]
    bank.install("head", drawn(model, 5, targets=("lm_head", "q_proj")))
    engine = Engine(model, adapters=bank, max_tokens_per_step=16)
    requests = finish(engine, [Request(ids, GREEDY, adapter="head"), Request(ids, GREEDY), AllLogits(ids)])
    plain = tiny_model(tied_head=False)
    expected, gap = alone(plain, drawn(plain, 5, targets=("lm_head", "q_proj")), ids, 12)
    assert gap > 1e-4 and requests[0].token_ids == expected != requests[1].token_ids


def test_readings_go_through_their_adapter():
    model, ids = tiny_model(), texts(1)[0]
    bank = with_bank(model)
    engine = Engine(model, adapters=bank)
    scored, base = finish(engine, [Scoring(ids, score_from=4, adapter="one"), Scoring(ids, score_from=4)])
    with bank.rows.use(1):
        logits = plain_logits(model, ids).log_softmax(-1)
    expected = sum(float(logits[i - 1, ids[i]]) for i in range(4, len(ids)))
    assert scored.nats == pytest.approx(expected, abs=1e-3) and abs(scored.nats - base.nats) > 0.1
    one, other = finish(engine, [Embedding(ids, adapter="one"), Embedding(ids)])
    assert torch.dot(one.unit_vector(), other.unit_vector()) < 0.999


def test_the_prefix_cache_knows_adapters_and_their_versions():
    model, ids = tiny_model(), texts(6)[-1]
    assert len(ids) > 60
    bank = with_bank(model)
    engine = Engine(model, adapters=bank)

    def cached(name):
        (request,) = finish(engine, [Request(ids, GREEDY, adapter=name)])
        return request.cached_tokens, request.token_ids

    assert [cached(name)[0] for name in ("", "one", "two")] == [0, 0, 0]
    assert [cached(name)[0] > 0 for name in ("", "one", "two")] == [True, True, True]
    before = cached("one")[1]
    assert bank.unload("one")
    bank.install("one", drawn(model, 9))  # other weights under the same name
    hits, after = cached("one")
    assert hits == 0 and after != before


def test_an_adapter_in_use_goes_when_its_last_request_ends():
    model, ids = tiny_model(), texts(1)[0]
    bank = AdapterBank(model)
    bank.install("one", drawn(model, 1))
    engine = Engine(model, adapters=bank)
    running = Request(ids, GREEDY, adapter="one")
    engine.add(running)
    engine.step()
    assert bank.unload("one") is False and bank.names == []
    with pytest.raises(DachengError, match="no adapter of this name"):
        engine.add(Request(ids, GREEDY, adapter="one"))
    while engine.has_work:
        engine.step()
    expected, _ = alone(tiny_model(), drawn(tiny_model(), 1), ids, 12)
    assert running.token_ids == expected
    assert bank.rows.known == set() and type(model.blocks[0].attention.q).__name__ == "Dense"


def test_unknown_adapters_are_refused_before_anything_happens():
    engine = Engine(tiny_model(), adapters=AdapterBank(tiny_model()))
    for one in (engine, Engine(tiny_model())):
        with pytest.raises(DachengError) as caught:
            one.add(Request([1, 2, 3], GREEDY, adapter="nobody"))
        assert caught.value.field == "adapter" and not one.has_work


@pytest.mark.parametrize("first", ["engine", "adapter"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_mixed_step_is_one_compiled_call(first, threads):
    """Rows of the base have the bits they have without adapters, rows of an adapter and both what Eager
    says; whether the engine or the adapter was there first. Only DoRA goes to Eager."""
    packed_model = _with_kernels()
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 70, (40,), generator=generator).tolist() for _ in range(3)]
    plain = packed_model()
    expected = finish(Engine(plain, executor=FusedCPU(plain)), [AllLogits(ids) for ids in prompts])
    model, eager = packed_model(), packed_model()
    bank = AdapterBank(model) if first == "engine" else with_bank(model)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        engine = Engine(model, executor=FusedCPU(model), adapters=bank, max_tokens_per_step=57)
        if first == "engine":
            bank = with_bank(model, bank)
        alone_ = [finish(engine, [_logits_of(prompts[1], name)])[0] for name in ("one", "two")]
        engine.weights_changed()  # no prefix of these
        names = ("", "one", "two", "")
        mixed = finish(engine, [_logits_of(prompts[i], name) for i, name in zip((0, 1, 1, 2), names)])
    finally:
        torch.set_num_threads(before)
    assert engine.executor.fallbacks == 0 and engine.executor.name == "fused-cpu"
    twins = [expected[0], *alone_, expected[2]]
    assert all(torch.equal(torch.cat(a.logits), torch.cat(b.logits)) for a, b in zip(mixed, twins))
    other = Engine(eager, executor=Eager(eager), adapters=with_bank(eager))
    truth = finish(other, [_logits_of(prompts[1], name) for name in ("one", "two", "dora", "")])
    found = [*mixed[1:3], *finish(engine, [_logits_of(prompts[1], "dora")])]
    assert engine.executor.fallbacks > 0
    scale = torch.cat(truth[3].logits).std()
    for one, two in zip(found, truth):
        assert (torch.cat(one.logits) - torch.cat(two.logits)).norm(dim=1).quantile(0.5) < 0.02 * scale * 70**0.5
        assert (torch.cat(one.logits) - torch.cat(truth[3].logits)).abs().max() > 0.5


def test_another_adapter_under_a_name_is_another_to_the_compiled_step():
    """Also weights that are written to in place, as a rollout worker's are."""
    packed_model = _with_kernels()
    ids = torch.randint(0, 70, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    model = packed_model()
    bank = AdapterBank(model)
    bank.install("one", drawn(model, 1, rank=3))
    engine = Engine(model, executor=FusedCPU(model), adapters=bank)
    found = []
    for change in ("nothing", "in place", "another"):
        if change == "in place":
            for name, parameter in model.named_parameters():
                if ".adapters." in name and name.endswith(".b"):
                    parameter.mul_(2)
        elif change == "another":
            bank.unload("one")
            bank.install("one", drawn(model, 9))
        engine.weights_changed()
        found += finish(engine, [_logits_of(ids, "one")])
        eager = Engine(model, executor=Eager(model), adapters=bank)
        (truth,) = finish(eager, [_logits_of(ids, "one")])
        assert (torch.cat(found[-1].logits) - torch.cat(truth.logits)).abs().mean() < 0.02
    assert engine.executor.fallbacks == 0
    first, second, third = (torch.cat(request.logits) for request in found)
    assert (first - second).abs().max() > 0.5 and (second - third).abs().max() > 0.5


def test_an_adapter_for_every_row_is_never_left_out():
    """As after add_lora, with no bank: a compiled executor that was there before takes it, or steps aside while it is
    in training."""
    packed_model = _with_kernels()
    ids = torch.randint(0, 70, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    model = packed_model()
    engine = Engine(model, executor=FusedCPU(model))
    (before,) = finish(engine, [AllLogits(ids)])
    adapter = drawn(model, 1)
    rows_of(model, make=True).default = attach(model, adapter)
    (eager,) = finish(Engine(model, executor=Eager(model)), [AllLogits(ids)])
    for trained in (True, False):
        for part in adapter.parts.values():
            part.requires_grad_(trained)
        engine.weights_changed()
        fallbacks = engine.executor.fallbacks
        (found,) = finish(engine, [AllLogits(ids)])
        assert (engine.executor.fallbacks > fallbacks) is trained
        difference = (torch.cat(found.logits) - torch.cat(eager.logits)).abs()
        assert difference.max() == 0 if trained else difference.mean() < 0.02
        assert (torch.cat(found.logits) - torch.cat(before.logits)).abs().max() > 0.5


def _with_kernels():
    if native.library() is None:
        pytest.skip(f"no compiled kernels: {native.why_not()}")
    from test_fused_executor import packed_model

    return packed_model


def _logits_of(ids, adapter):
    request = AllLogits(ids)
    request.adapter = adapter
    return request


def test_adapters_come_and_go_while_requests_run(tmp_path):
    """Through the engine's thread, with a request of the base and one of another adapter running all the while."""
    model, ids = tiny_model(), texts(1)[0]
    write_adapter(tmp_path / "late", drawn(model, 7), model)
    bank = with_bank(model)
    long = SamplingParams(max_tokens=60, temperature=0)

    async def text(engine, name, params=GREEDY):
        return [i async for output in engine.generate(ids, params, adapter=name) for i in output.token_ids]

    async def scenario():
        engine = AsyncEngine(Engine(model, adapters=bank))
        engine.start()
        running = [asyncio.create_task(text(engine, name, long)) for name in ("", "one")]
        await asyncio.sleep(0.05)
        await engine.load_adapter("late", tmp_path / "late")
        late = asyncio.create_task(text(engine, "late"))
        await asyncio.sleep(0)
        await engine.unload_adapter("one")
        with pytest.raises(DachengError, match="no adapter of this name"):
            await text(engine, "one")
        with pytest.raises(DachengError, match="has this name"):
            await engine.load_adapter("late", tmp_path / "late")
        found = [await late, *[await task for task in running]]
        await engine.unload_adapter("late")
        await engine.stop()
        return found

    late, base, one = asyncio.run(scenario())
    plain = tiny_model()
    assert late == alone(plain, drawn(plain, 7), ids, 12)[0]
    assert base == alone(plain, None, ids, 60)[0] and one == alone(plain, drawn(plain, 1), ids, 60)[0]
    assert bank.names == ["two", "dora"]


@pytest.mark.slow
def test_a_real_model_serves_base_and_adapter_together():
    """SmolLM2 in its blocks: the base's texts are those without adapters, to the bit of each log-probability where the
    step is compiled, and the adapter says its own."""
    path = package_file(*MODELS["smollm2"].parts[0])
    if path is None:
        pytest.skip(f"the model is absent: {MODELS['smollm2'].command}")
    loaded = load_model(path, packed=True)
    model = loaded.model
    prompts = ["The capital of France is", "def area(radius):", "Once upon a time"]
    params = SamplingParams(max_tokens=10, temperature=0, logprobs=True)

    def run(adapters, names):
        executor = FusedCPU(model) if not FusedCPU.why_not(model) else Eager(model)
        engine = Engine(model, loaded.tokenizer, executor=executor, adapters=adapters, max_context=64)
        if adapters is not None:
            adapters.install("own", drawn(model, 1, std=0.05, rank=8))
        return finish(engine, [Request(engine.encode(p), params, adapter=n) for p, n in zip(prompts, names)])

    expected = run(None, ["", "", ""])
    found = run(AdapterBank(model), ["", "own", ""])
    for one, other in zip(found[::2], expected[::2]):
        assert one.token_ids == other.token_ids
        if native.library() is not None:
            assert one.logprobs == other.logprobs
    assert found[1].token_ids != expected[1].token_ids
