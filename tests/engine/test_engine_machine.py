"""Anything may happen in any order: what is held and what is free is the pool, and nothing is left at the end."""

import time
from collections import Counter

import pytest
import torch
from engine_fakes import Scripted, tiny_model
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from dacheng.engine import Engine, Request, speculation
from dacheng.engine.cache import KVCache
from dacheng.engine.draft import DraftModel
from dacheng.engine.executor import StepResult
from dacheng.engine.readings import Scoring
from dacheng.engine.request import Status
from dacheng.engine.step_plan import StepPlan
from dacheng.protocols import SamplingParams

MODEL = tiny_model(window=40, window_pattern="SL", max_positions=192)
SCRIPT = [(7 * i * i + i) % 250 for i in range(11)]  # short, so that guesses are right at times
AFTER = {token: SCRIPT[(i + 1) % len(SCRIPT)] for i, token in enumerate(SCRIPT)}


class Guesser:
    """The executor of a draft model that knows the script, and is wrong at every seventh position."""

    name = "guesser"

    def run(self, plan: StepPlan, cache: KVCache) -> StepResult:
        logits = torch.zeros(sum(len(chunk.logit_rows) for chunk in plan.chunks), 258)
        for chunk, rows in plan.rows():
            for row, position in zip(logits[rows], chunk.logit_rows):
                assert cache.ranges(0, chunk.request.slot, position, position + 1), "there is room for what is read"
                row[AFTER.get(chunk.text[position], 3) if position % 7 else 9] = 10.0
        return StepResult(logits)


class Machine(RuleBasedStateMachine):
    """A pool of a few blocks; the executor says its script, so what a text must be is known."""

    @initialize(
        blocks=st.integers(3, 12),
        max_batch=st.integers(1, 5),
        extra=st.integers(0, 60),
        speculate=st.integers(0, 9),
        drafted=st.booleans(),
        kv_dtype=st.sampled_from([None, "bfloat16", "int8"]),
    )
    def start(
        self, blocks: int, max_batch: int, extra: int, speculate: int, drafted: bool, kv_dtype: str | None
    ) -> None:
        self.engine = Engine(
            MODEL,
            max_batch=max_batch,
            max_tokens_per_step=max_batch + extra,
            cache_tokens=32 * blocks,
            executor=Scripted(SCRIPT, 258),
            speculate=speculate,
            draft=MODEL if drafted and speculate else None,
            kv_dtype=kv_dtype,
        )
        drafter = self.engine.speculation.drafter
        self.caches = [self.engine.cache]
        if isinstance(drafter, DraftModel):
            drafter.executor = Guesser()
            self.caches.append(drafter.cache)
        self.requests: list[Request] = []
        self.now = 0.0

    @rule(
        length=st.integers(1, 150),
        first=st.integers(0, 2),
        max_tokens=st.integers(1, 70),
        salt=st.sampled_from(["", "b"]),
        scoring=st.booleans(),
    )
    def add(self, length: int, first: int, max_tokens: int, salt: str, scoring: bool) -> None:
        ids = [first, *range(1, min(length, self.engine.scheduler.longest - 1))]
        if scoring and len(ids) > 1:
            request: Request = Scoring(ids, salt=salt, score_from=len(ids) // 2 or 1)
        else:
            request = Request(ids, SamplingParams(max_tokens=max_tokens, temperature=0), salt=salt)
        self.engine.add(request)
        self.requests.append(request)

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()

    @rule(choice=st.integers(0, 10**6))
    def cancel(self, choice: int) -> None:
        if self.requests:
            request = self.requests[choice % len(self.requests)]
            was_open = not request.finished
            assert self.engine.cancel(request.id) == was_open

    @rule()
    def preempt(self) -> None:
        if self.engine.scheduler.running:
            self.engine.scheduler._preempt(self.engine.scheduler.running[-1])

    @rule(choice=st.integers(0, 10**6))
    def expire(self, choice: int) -> None:
        if open_ := [request for request in self.requests if not request.finished]:
            request = open_[choice % len(open_)]
            request.deadline = time.monotonic()
            outputs = self.engine.step()
            assert [o.finish_reason for o in outputs if o.request_id == request.id] == ["deadline"]

    @invariant()
    def held_and_free_are_the_pool(self) -> None:
        if not hasattr(self, "engine"):
            return
        for group in [group for cache in self.caches for group in cache._groups.values()]:
            held = Counter(block for table in group.tables.values() for block in table.blocks[table.slid :])
            assert -1 not in held
            assert {block: refs for block, refs in enumerate(group.pool.refs) if refs} == dict(held)
            assert group.pool.free + len(held) == group.pool.size
            assert not set(group.pool._free) & set(held)
            assert {group.pool._by_key[key]: key for key in group.pool._by_key} == group.pool._key_of
        cache = self.engine.cache
        running = [request for request in self.requests if request.status is Status.RUNNING]
        assert {request.slot for request in running} == set(next(iter(cache._groups.values())).tables)
        assert cache.open_slots == len(running) <= self.engine.scheduler.max_batch
        drafter = self.engine.speculation.drafter
        if isinstance(drafter, DraftModel):
            open_ = {request.id for request in self.requests if not request.finished}
            assert set(drafter._texts) <= open_ and drafter.cache.open_slots == len(drafter._texts)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(20_000):
            if not self.engine.has_work:
                break
            self.engine.step()
        assert not self.engine.has_work, "every request ends"
        assert all(pool.free == pool.size and not pool._tainted for cache in self.caches for pool in cache.pools)
        for request in self.requests:
            assert request.finished
            written = request.token_ids if not isinstance(request, Scoring) else []
            assert written == [SCRIPT[i % len(SCRIPT)] for i in range(len(written))]
            if request.finish_reason == "length":
                assert len(written) == request.params.max_tokens or len(request.known) == self.engine.scheduler.longest


@pytest.fixture(autouse=True)
def guesses_at_once(monkeypatch):
    monkeypatch.setattr(speculation, "PLAIN_STEPS", 0)
    monkeypatch.setattr(speculation, "PAUSE", 3)


def test_random_use_leaks_nothing():
    run_state_machine_as_test(Machine, settings=settings(max_examples=15, stateful_step_count=30, deadline=None))


@pytest.mark.slow
def test_random_use_leaks_nothing_in_10000_steps():
    run_state_machine_as_test(Machine, settings=settings(max_examples=100, stateful_step_count=100, deadline=None))
