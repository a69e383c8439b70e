"""The one rule: every step gives out at most its budget, and computed catches up with known."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.engine.cache import PagedCache
from dacheng.engine.request import Request, Status
from dacheng.engine.scheduler import Scheduler
from dacheng.errors import DachengError, UsageError
from dacheng.models.cache import LayerCache


def new_scheduler(max_batch=3, budget=8, max_context=100, tokens=None) -> Scheduler:
    tokens = max(1, max_batch) * 128 if tokens is None else tokens
    cache = PagedCache([LayerCache("paged", 1, 2)], max_slots=max(1, max_batch), max_tokens=tokens, max_step=budget)
    return Scheduler(cache, max_batch=max_batch, max_tokens_per_step=budget, max_context=max_context)


def queue(scheduler: Scheduler, *lengths: int) -> list[Request]:
    requests = [Request(list(range(length))) for length in lengths]
    for request in requests:
        scheduler.add(request)
    return requests


def step(scheduler: Scheduler) -> list[tuple[int, int, bool]]:
    """Runs a step in which every caught-up request gets a token; returns (start, count, sampled) in order of slots."""
    plan = scheduler.schedule()
    scheduler.commit(plan)
    done = []
    for chunk in sorted(plan.chunks, key=lambda chunk: chunk.request.slot):
        done.append((chunk.start, chunk.count, bool(chunk.logit_rows)))
        if chunk.logit_rows:
            chunk.request.known.append(0)
    return done


def test_prefill_chunks_and_decode_share_the_budget():
    scheduler = new_scheduler()
    queue(scheduler, 3, 14, 2)
    assert step(scheduler) == [(0, 3, True), (0, 5, False)]
    assert step(scheduler) == [(3, 1, True), (5, 7, False)]
    assert step(scheduler) == [(4, 1, True), (12, 2, True), (0, 2, True)]
    assert step(scheduler) == [(5, 1, True), (14, 1, True), (2, 1, True)]


def test_nobody_is_admitted_to_a_step_that_has_no_token_left():
    scheduler = new_scheduler(budget=4)
    _, second = queue(scheduler, 4, 4)
    step(scheduler)
    assert second.status is Status.WAITING and scheduler.cache.open_slots == 1


def test_only_the_last_known_position_asks_for_logits():
    scheduler = new_scheduler()
    queue(scheduler, 10)
    assert scheduler.schedule().chunks[0].logit_rows == range(0)
    step(scheduler)
    assert scheduler.schedule().chunks[0].logit_rows == range(9, 10)


def test_a_plan_that_was_not_run_is_planned_again():
    scheduler = new_scheduler()
    queue(scheduler, 5, 9)
    first, again = scheduler.schedule(), scheduler.schedule()
    assert first == again
    assert [request.computed for request in scheduler.running] == [0, 0]


def test_waiting_requests_take_the_place_of_those_that_leave():
    scheduler = new_scheduler(max_batch=2)
    first, second, third = queue(scheduler, 2, 2, 2)
    step(scheduler)
    assert (first.status, third.status) == (Status.RUNNING, Status.WAITING)
    scheduler.drop(first)
    step(scheduler)
    assert third.status is Status.RUNNING and third.slot == 0
    scheduler.drop(second)
    scheduler.drop(third)
    assert not scheduler.has_work and scheduler.cache.open_slots == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 5)), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(0, 30),
)
def test_every_request_is_served_in_every_step_and_all_finish(sizes, max_batch, extra):
    """sizes: tokens of the prompt and tokens to generate."""
    scheduler = new_scheduler(max_batch=max_batch, budget=max_batch + extra)
    requests = queue(scheduler, *(prompt for prompt, _ in sizes))
    left = dict(zip(map(id, requests), (generated for _, generated in sizes)))
    admitted: list[Request] = []
    for _ in range(sum(prompt + generated for prompt, generated in sizes)):
        plan = scheduler.schedule()
        assert plan.tokens <= max_batch + extra
        assert len(scheduler.running) <= max_batch
        served = [chunk.request for chunk in plan.chunks]
        assert len({request.slot for request in served}) == len(served)
        admitted += [request for request in scheduler.running if request not in admitted]
        for request in scheduler.running:
            if request.pending == 1 and request.computed:
                assert request in served, "one that generates is never left out"
        scheduler.commit(plan)
        for chunk in plan.chunks:
            if chunk.logit_rows:
                chunk.request.known.append(0)
                left[id(chunk.request)] -= 1
                if left[id(chunk.request)] == 0:
                    scheduler.drop(chunk.request)
        if not scheduler.has_work:
            break
    assert not scheduler.has_work, "every step computes at least one token, so all are done by now"
    assert admitted == requests, "first come, first served"


def test_what_can_never_fit_is_refused_by_name():
    scheduler = new_scheduler(max_context=20)
    scheduler.check(Request([0] * 19))
    with pytest.raises(DachengError) as refusal:
        scheduler.check(Request([0] * 20))
    assert refusal.value.field == "max_context" and refusal.value.value == 20
    assert "19 tokens" in str(refusal.value.remedy)
    with pytest.raises(DachengError, match="no tokens"):
        scheduler.check(Request([]))


def test_limits_that_would_starve_a_request_are_refused():
    with pytest.raises(UsageError) as refusal:
        new_scheduler(max_batch=8, budget=7)
    assert refusal.value.field == "max_tokens_per_step"
    with pytest.raises(UsageError):
        new_scheduler(max_batch=0)
