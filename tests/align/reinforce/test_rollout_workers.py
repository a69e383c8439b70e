"""Rollouts in line and in processes: the same answers, groups that share their prompt, and processes that die."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from reinforce_toys import CountingMix, model, prompts, settings, tokenizer

from dacheng.adapt import LoRAConfig, add_lora
from dacheng.align.reinforce.training import train_policy
from dacheng.align.rollouts import Ask, InlineWorker, Sampling
from dacheng.align.rollouts.ask import shares
from dacheng.align.rollouts.processes import ProcessWorkers
from dacheng.engine.executor import Eager
from dacheng.engine.fused import FusedFloats
from dacheng.errors import DachengError, UsageError

SAMPLING = Sampling(max_tokens=5, max_batch=8)


def asks(count: int = 12, group: int = 3) -> list[Ask]:
    found = prompts()
    return [
        Ask(f"{i}", found[i // group % len(found)].token_ids, str(i // group), 100 + i, {"prompt": i // group})
        for i in range(count)
    ]


def contents(rollouts):
    return [(r.id, r.completion_ids, r.text, r.group, r.finish_reason) for r in rollouts]


def test_a_rollout_holds_what_the_model_wrote_and_how_likely_it_was():
    policy = model()
    worker = InlineWorker(policy, tokenizer(), SAMPLING)
    worker.update_weights(policy, 7)
    for rollout, ask in zip(worker.generate(asks()), asks()):
        assert (rollout.id, rollout.group, rollout.weights_version) == (ask.id, ask.group, 7)
        assert 1 <= len(rollout.completion_ids) <= 5 and rollout.mask == [1] * len(rollout.completion_ids)
        assert tokenizer().decode(rollout.completion_ids) == rollout.text
        assert all(-12 < logp < 0 for logp in rollout.logps)
    assert worker.health().tokens == sum(len(r.completion_ids) for r in worker.generate(asks()))


def test_new_weights_are_read_without_a_copy():
    policy = model()
    worker = InlineWorker(policy, tokenizer(), SAMPLING)
    before = worker.generate(asks())
    assert contents(worker.generate(asks())) == contents(before)
    with torch.no_grad():
        policy.embed.weight.mul_(3.0)
    worker.update_weights(policy, 1)
    after = worker.generate(asks())
    assert after[0].logps != before[0].logps
    with pytest.raises(UsageError, match="its own model"):
        worker.update_weights(model(), 2)


@pytest.mark.parametrize("adapted", [False, True])
def test_compiled_steps_write_what_the_model_says(adapted):
    """The same tokens, log-probabilities within 2e-5 nats; what is trained meanwhile is seen, told or not."""
    policy = model()
    if reason := FusedFloats.why_not(policy):
        pytest.skip(f"no compiled steps: {reason}")
    if adapted:
        add_lora(policy, LoRAConfig(rank=2), generator=torch.Generator().manual_seed(1))
    worker = InlineWorker(policy, tokenizer(), SAMPLING)
    found = []
    for change in (0.0, 0.3):
        with torch.no_grad():
            for place, weight in enumerate(p for p in policy.parameters() if p.requires_grad):
                weight += change * torch.randn(weight.shape, generator=torch.Generator().manual_seed(place))
        eager = InlineWorker(policy, tokenizer(), SAMPLING)
        eager._engine_for(asks()).executor = Eager(policy)
        compiled, plain = worker.generate(asks()), eager.generate(asks())
        assert contents(compiled) == contents(plain)
        for one, two in zip(compiled, plain):
            assert one.logps == pytest.approx(two.logps, abs=2e-5)
        found.append(contents(compiled))
    assert found[0] != found[1]
    assert worker._engine is not None and isinstance(worker._engine.executor, FusedFloats)
    assert worker._engine.executor.fallbacks == 0
    assert FusedFloats.why_not(model(heads=2))  # and then the model itself writes
    assert InlineWorker(model(heads=2), tokenizer(), SAMPLING)._executor() is None


def test_the_answers_of_a_group_find_their_prompt_computed():
    policy = model()
    worker = InlineWorker(policy, tokenizer(), Sampling(max_tokens=4, max_batch=8))
    ids = tuple(range(1, 49))
    shared = [Ask(f"{i}", ids, "one", 5 + i) for i in range(8)]
    together = worker.generate(shared)
    assert worker._engine is not None
    assert worker._engine.scheduler.counts["prefix_cache_hits"] == 7 * 32  # whole blocks of 32
    alone = [InlineWorker(policy, tokenizer(), Sampling(max_tokens=4)).generate([ask])[0] for ask in shared]
    assert contents(alone) == contents(together)


def test_a_tool_speaks_in_the_middle_and_is_masked_out():
    said = []

    def continuation(text: str) -> str | None:
        said.append(text)
        return "=5;" if len(said) == 1 else None

    policy = model()
    letters = tuple("abcdefghijklmnopqrstuvwxyz".upper()) + tuple(chr(i) for i in range(32, 127))
    sampling = Sampling(max_tokens=12, stop=letters)  # a random model soon writes one of these
    ask = next(
        ask for ask in asks(60, 1)
        if InlineWorker(policy, tokenizer(), sampling).generate([ask])[0].finish_reason == "stop"
        and len(InlineWorker(policy, tokenizer(), sampling).generate([ask])[0].completion_ids) < 6
    )  # fmt: skip
    found = InlineWorker(policy, tokenizer(), sampling, continuation=continuation).generate([ask])[0]
    assert "=5;" in found.text and found.mask.count(0) == 3
    first = found.mask.index(0)
    assert tokenizer().decode(found.completion_ids[first : first + 3]) == "=5;"
    assert found.logps[first : first + 3] == [0.0] * 3 and all(x < 0 for x in found.logps[:first])
    assert found.own_tokens == len(found.mask) - 3


def test_shares_are_whole_groups_and_functions_of_the_asks():
    parts = shares(asks(12, 3), 3)
    assert [len(part) for part in parts] == [6, 3, 3]
    assert sorted(ask.id for part in parts for ask in part) == sorted(ask.id for ask in asks(12, 3))
    assert all({a.group for a in x}.isdisjoint(a.group for a in y) for x in parts for y in parts if x is not y)


def test_a_tokenizer_that_does_not_fit_is_refused():
    class Larger:
        vocab_size, eos_id = 10_000, 0

    with pytest.raises(UsageError, match="10000 tokens"):
        InlineWorker(model(), Larger(), SAMPLING)


@pytest.mark.process
def test_processes_write_the_same_and_a_dead_one_is_replaced(tmp_path):
    policy = model()
    add_lora(policy, LoRAConfig(rank=2), generator=torch.Generator().manual_seed(1))
    expected = contents(InlineWorker(policy, tokenizer(), SAMPLING).generate(asks()))
    workers = ProcessWorkers(policy, tokenizer(), SAMPLING, 2, tmp_path, answer_s=60)
    try:
        workers.update_weights(policy, 1)
        assert contents(workers.generate(asks())) == expected
        assert (workers.health().alive, workers.health().restarts) == (2, 0)
        for moment in ("before", "while"):  # a process dies before it is asked, and after
            if moment == "before":
                os.kill(workers.pids[1], signal.SIGKILL)
            workers.start(asks())
            if moment == "while":
                os.kill(workers.pids[0], signal.SIGKILL)
            assert contents(workers.collect()) == expected
        assert (workers.health().alive, workers.health().restarts) == (2, 2)
        # In the sync of weights: the new one gets the weights that all others have.
        with torch.no_grad():
            policy.blocks[0].attention.q.adapters["1"].b.normal_(generator=torch.Generator().manual_seed(0))
        changed = contents(InlineWorker(policy, tokenizer(), SAMPLING).generate(asks()))
        os.kill(workers.pids[0], signal.SIGKILL)
        workers.update_weights(policy, 2)
        assert contents(workers.generate(asks())) == changed != expected
        # An error in a process is told as what it is, not taken for a death.
        with pytest.raises(DachengError, match="prompt"):
            workers.generate([Ask("long", tuple([1] * 500), "g", 0)])
    finally:
        workers.close()
    assert workers.health().alive == 0


@pytest.mark.process
def test_a_training_with_a_process_equals_one_in_line(tmp_path):
    weights = []
    for count in (0, 1):
        out = tmp_path / str(count)
        out.mkdir()
        config = settings(lag=True, updates_per_rollout=2, steps=4, workers=count)
        done = train_policy(model(), tokenizer(), prompts(), CountingMix(out / "calls"), out, config)
        weights.append(done.model.state_dict())
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])] == []
