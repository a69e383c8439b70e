"""The engine behind coroutines: the same texts, refusals before the first item, and nothing left behind."""

import asyncio
import gc
import pickle
import threading
import time

import pytest
import torch
from engine_fakes import PieceTokenizer, is_greedy, tiny_model

from dacheng.engine import AsyncEngine, Engine, QueueFull
from dacheng.engine import async_engine as module
from dacheng.errors import DachengError, UsageError
from dacheng.protocols import SamplingParams

TOKENIZER = PieceTokenizer()
MODEL = tiny_model(max_positions=192)
GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=150, temperature=0, ignore_eos=True)


def served(check, **settings):
    """Runs the coroutine `check(shared)` on a started engine and stops it; whatever happens, no block stays held."""
    options = {name: settings.pop(name) for name in ("max_waiting", "watchdog_s") if name in settings}

    async def main():
        shared = AsyncEngine(Engine(MODEL, TOKENIZER, **settings), **options)
        shared.start()
        try:
            async with asyncio.timeout(60):
                return await check(shared)
        finally:
            await shared.stop(drain=False)
            assert shared.engine.cache.open_slots == 0
            assert all(pool.free == pool.size for pool in shared.engine.cache.pools)
            assert not shared._texts and not shared._embeddings and not shared._inbox and shared._submitted == 0

    return asyncio.run(main())


async def whole(shared: AsyncEngine, prompt, params=GREEDY, **options) -> tuple[str, list[int], str]:
    text, ids, reason = "", [], None
    async for output in shared.generate(prompt, params, **options):
        assert reason is None, "the finish_reason comes last"
        text, ids, reason = text + output.text, ids + output.token_ids, output.finish_reason
    return text, ids, reason


async def whole_of(stream) -> list:
    return [output async for output in stream]


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def test_texts_are_those_of_the_engine():
    prompts = ["a", "The quick brown fox", "大成", [5, 6, 7], "x" * 90]
    alone = Engine(MODEL, TOKENIZER).generate(prompts, GREEDY)

    async def check(shared):
        found = await asyncio.gather(*[whole(shared, prompt) for prompt in prompts])
        assert found == [(done.text, done.token_ids, "length") for done in alone]
        stats = shared.stats()
        assert stats["num_requests_running"] == stats["num_requests_waiting"] == stats["kv_cache_usage"] == 0
        assert stats["generation_tokens"] == 100 and stats["prompt_tokens"] == 1 + 19 + 6 + 3 + 90
        assert stats["preemptions"] == 0 and stats["prefix_cache_queries"] == 119
        await whole(shared, prompts[-1])
        assert shared.stats()["prefix_cache_hits"] == 64

    served(check, max_batch=3)


def test_what_add_refuses_is_raised_before_the_first_item():
    async def check(shared):
        for prompt, params, kind, field in (
            ([1] * 192, GREEDY, DachengError, "max_context"),
            ([1], SamplingParams(top_p=2.0), UsageError, "top_p"),
            ([300], GREEDY, DachengError, "prompt_token_ids"),
        ):
            with pytest.raises(kind) as refusal:
                await anext(shared.generate(prompt, params))
            assert refusal.value.field == field
        with pytest.raises(DachengError):
            await shared.embed([[1, 2], []])
        assert (await whole(shared, "fine"))[2] == "length" and shared.healthy

    served(check)


@pytest.mark.parametrize("how", ["aclose", "task", "abandoned"])
def test_closing_the_iterator_ends_the_request(how):
    """In decode, with a neighbour that goes on, and one that waits behind it."""

    async def check(shared):
        neighbour = asyncio.create_task(whole(shared, "b", LONG))
        stream = shared.generate("abc", LONG)

        first = await anext(stream)
        assert first.finish_reason is None
        if how == "aclose":
            await stream.aclose()
        elif how == "task":
            task = asyncio.create_task(whole_of(stream))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            del stream
            gc.collect()  # the loop closes what nobody refers to
        waiting = asyncio.create_task(whole(shared, "c"))
        _, ids, reason = await neighbour
        assert reason == "length" and is_greedy(MODEL, [98], ids)
        assert (await waiting)[2] == "length"
        assert shared.engine.metrics["finished_cancelled"] == 1

    served(check, max_batch=2)


def test_a_prompt_is_cancelled_in_the_middle_of_its_prefill():
    async def check(shared):
        stream = shared.generate([3] * 180, GREEDY)
        task = asyncio.create_task(anext(stream))
        await until(lambda: shared.engine.metrics["tokens_computed"] >= 4)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: shared.engine.cache.open_slots == 0)
        assert shared.engine.metrics["tokens_computed"] < 180 and shared.engine.metrics["tokens_generated"] == 0

    served(check, max_batch=1, max_tokens_per_step=2)


def test_a_full_queue_says_when_to_come_back():
    async def check(shared):
        hold = threading.Event()
        run = shared.engine.executor.run
        shared.engine.executor.run = lambda plan, cache: (hold.wait(), run(plan, cache))[1]
        tasks = []
        try:
            for _ in range(3):  # one runs, two wait
                tasks.append(asyncio.create_task(whole(shared, "a")))
                await until(lambda: shared._step_started is not None)
                await asyncio.sleep(0.01)
            with pytest.raises(QueueFull) as refusal:
                shared.generate("b", GREEDY)
            assert refusal.value.retry_after_s >= 1 and refusal.value.value == 2
            assert pickle.loads(pickle.dumps(refusal.value)).retry_after_s == refusal.value.retry_after_s
            with pytest.raises(QueueFull):
                await shared.embed([[1]])
            assert shared.stats()["num_requests_waiting"] == 2
        finally:
            hold.set()
        assert [reason for _, _, reason in await asyncio.gather(*tasks)] == ["length"] * 3
        assert (await whole(shared, "b"))[2] == "length"

    served(check, max_batch=1, max_waiting=2)


def test_deadlines_end_running_and_waiting_requests():
    async def check(shared):
        slow = shared.engine.executor.run
        shared.engine.executor.run = lambda plan, cache: (time.sleep(0.01), slow(plan, cache))[1]
        found = await asyncio.gather(
            whole(shared, "a", LONG, deadline_s=0.3), whole(shared, "b", LONG, deadline_s=0.1), whole(shared, "c")
        )
        assert [reason for _, _, reason in found] == ["deadline", "deadline", "length"]
        assert 0 < len(found[0][1]) < 150 and found[1][1] == []
        assert is_greedy(MODEL, [97], found[0][1])

    served(check, max_batch=1)


def test_vectors():
    texts = [[1, 2, 3], [4] * 50, [5]]
    engine = Engine(MODEL, TOKENIZER)
    expected = [torch.tensor(vector) for vector in engine.embed([bytes(ids).decode() for ids in texts])]

    async def check(shared):
        for _ in range(2):
            for found, vector in zip(await shared.embed(texts), expected, strict=True):
                assert torch.allclose(found, vector, atol=1e-5)
        assert await shared.embed([]) == []

    served(check, max_batch=2)


def test_draining_lets_running_requests_finish_and_refuses_new_ones():
    async def main():
        shared = AsyncEngine(Engine(MODEL, TOKENIZER, max_batch=1))
        with pytest.raises(DachengError, match="takes no requests"):
            shared.generate("a", GREEDY)
        shared.start()
        tasks = [asyncio.create_task(whole(shared, prompt)) for prompt in "ab"]
        await until(lambda: shared.engine.has_work)
        await asyncio.sleep(0.01)
        stopping = asyncio.create_task(shared.stop(drain=True))
        await asyncio.sleep(0)
        with pytest.raises(DachengError, match="takes no requests"):
            shared.generate("c", GREEDY)
        await stopping
        assert [reason for _, _, reason in await asyncio.gather(*tasks)] == ["length", "length"]
        assert not shared.healthy
        shared.start()  # and again
        assert (await whole(shared, "a"))[2] == "length" and shared.healthy
        endless = asyncio.create_task(whole(shared, "a", LONG))
        await until(lambda: shared.engine.has_work)
        await shared.stop(drain=False)
        assert (await endless)[2] == "cancelled"

    asyncio.run(asyncio.wait_for(main(), 60))


def test_draining_has_an_end():
    async def main():
        shared = AsyncEngine(Engine(MODEL, TOKENIZER))
        run = shared.engine.executor.run
        shared.engine.executor.run = lambda plan, cache: (time.sleep(0.02), run(plan, cache))[1]
        shared.start()
        task = asyncio.create_task(whole(shared, "a", LONG))
        await until(lambda: shared.engine.has_work)
        await shared.stop(drain=True, timeout_s=0.1)
        _, ids, reason = await task
        assert reason == "cancelled" and len(ids) < 150

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_step_that_hangs_is_not_healthy():
    async def check(shared):
        run, hold = shared.engine.executor.run, threading.Event()
        shared.engine.executor.run = lambda plan, cache: (hold.wait(), run(plan, cache))[1]
        assert shared.healthy
        task = asyncio.create_task(whole(shared, "a"))
        await until(lambda: not shared.healthy)
        hold.set()
        assert (await task)[2] == "length" and shared.healthy

    served(check, watchdog_s=0.05)


def test_a_step_that_fails_once_is_tried_again():
    async def check(shared):
        run, calls = shared.engine.executor.run, []

        def fail_at_times(plan, cache):
            calls.append(0)
            if len(calls) % 3 == 0:
                raise RuntimeError("out of memory, say")
            return run(plan, cache)

        shared.engine.executor.run = fail_at_times
        _, ids, reason = await whole(shared, "a")
        assert reason == "length" and is_greedy(MODEL, [97], ids) and shared.healthy

    served(check)


def test_a_request_that_breaks_every_step_takes_only_its_batch_with_it():
    async def check(shared):
        run = shared.engine.executor.run

        def fail_on_7(plan, cache):
            if any(7 in chunk.token_ids for chunk in plan.chunks):
                raise RuntimeError("no sevens")
            return run(plan, cache)

        shared.engine.executor.run = fail_on_7
        reasons = await asyncio.gather(whole(shared, [7]), whole(shared, [1, 2]))
        assert reasons[0][2] == "error" and reasons[1][2] == "length" and shared.healthy

    served(check, max_batch=1)


def test_a_thread_that_dies_leaves_nobody_waiting():
    async def main():
        shared = AsyncEngine(Engine(MODEL, TOKENIZER, max_batch=1), max_waiting=100)

        hold = threading.Event()

        def fail(plan, cache):
            hold.wait()
            raise RuntimeError("broken for good")

        shared.engine.executor.run = fail
        shared.start()
        tasks = [asyncio.create_task(whole(shared, "a")) for _ in range(20)]
        vector = asyncio.create_task(shared.embed([[1]]))
        await until(lambda: shared.stats()["num_requests_waiting"] >= 20)
        hold.set()
        reasons = {reason for _, _, reason in await asyncio.gather(*tasks)}
        assert reasons == {"error"}
        with pytest.raises(DachengError, match="broke down"):
            await vector
        await until(lambda: not shared.healthy)
        with pytest.raises(DachengError, match="takes no requests"):
            shared.generate("a", GREEDY)
        await shared.stop()

    asyncio.run(asyncio.wait_for(main(), 60))
    assert module.MAX_FAILURES < 20


def test_many_come_and_go():
    async def check(shared):
        async def one(i: int) -> str:
            stream = shared.generate([i % 250, *range(i % 40)], GREEDY, salt=str(i % 3))
            try:
                async for output in stream:
                    if i % 4 == 0 and output.token_ids:
                        return "left"
                    reason = output.finish_reason
                return reason
            finally:
                await stream.aclose()

        found = await asyncio.gather(*[one(i) for i in range(60)])
        assert found.count("left") == 15 and found.count("length") == 45
        await until(lambda: not shared.engine.has_work)

    served(check, max_batch=4, max_tokens_per_step=16, cache_tokens=192, max_waiting=100)


def test_free_memory_is_given_back_once_while_nothing_is_to_be_done(monkeypatch):
    given: list[float] = []
    monkeypatch.setattr(module, "IDLE_S", 0.02)
    monkeypatch.setattr(module, "return_free_memory", lambda: given.append(time.monotonic()))

    async def check(shared):
        await until(lambda: len(given) == 1)
        await asyncio.sleep(0.1)
        assert len(given) == 1  # then it sleeps until somebody calls
        before = time.monotonic()
        assert (await whole(shared, "a"))[2] == "length"
        await until(lambda: len(given) == 2)
        assert given[1] > before

    served(check)
