"""Several samples of one or more prompts, as one stream of steps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from dacheng.errors import DachengError, UsageError
from dacheng.protocols import SamplingParams
from dacheng.serve.api_error import APIError, from_dacheng
from dacheng.serve.metrics import Meter
from dacheng.serve.served_model import ServedModel

if TYPE_CHECKING:
    from dacheng.engine.engine import StepOutput

LONG_TEXT = 4096  # characters from which a text is encoded in a thread, so that others go on meanwhile


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts, each sampled `n` times: sample k of prompt i has the index i·n + k. prompt_param: the field of the
    request that holds the prompts; grammar_param: the one that asks for a structure of the answer. deadline_s: seconds
    from now to the end of all."""

    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    n: int = 1
    prompt_param: str = "prompt"
    deadline_s: float | None = None
    salt: str = ""
    meter: Meter | None = None
    grammar_param: str = "response_format"


async def encode_text(model: ServedModel, text: str) -> list[int]:
    """Ids of a text that is to be continued."""
    from dacheng.engine.boundary import encode_prompt

    if len(text) <= LONG_TEXT:
        return encode_prompt(model.tokenizer, text)
    return await asyncio.to_thread(encode_prompt, model.tokenizer, text)


async def run_job(model: ServedModel, job: Job) -> AsyncGenerator[tuple[int, StepOutput], None]:
    """(index, step) in the order in which they come. Closing it cancels all that is not finished.

    Raises APIError: 400 and 429 as the engine refuses, 500, 503 and 504 when a sample ends without being complete.
    """
    if job.meter is not None:
        job.meter.begin(sum(map(len, job.prompts)))
    indexed = [(i * job.n + k, prompt) for i, prompt in enumerate(job.prompts) for k in range(job.n)]
    if len(indexed) == 1:
        async with aclosing(_one(model, job, *indexed[0])) as steps:
            async for step in steps:
                yield step
        return
    queue: asyncio.Queue[Any] = asyncio.Queue(maxsize=4 * len(indexed))
    tasks = [asyncio.create_task(_feed(_one(model, job, index, prompt), queue)) for index, prompt in indexed]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(steps: AsyncGenerator[tuple[int, StepOutput], None], queue: asyncio.Queue[Any]) -> None:
    async with aclosing(steps):
        try:
            async for step in steps:
                await queue.put(step)
            await queue.put(None)
        except Exception as error:
            await queue.put(error)


async def _one(
    model: ServedModel, job: Job, index: int, prompt: Sequence[int]
) -> AsyncGenerator[tuple[int, StepOutput], None]:
    params = job.params
    if params.seed is not None and index:  # samples differ and yet repeat
        params = replace(params, seed=_seed(params.seed + index))
    with _translated(job):
        more = {"adapter": model.adapter} if model.adapter else {}
        steps = model.engine.generate(prompt, params, deadline_s=job.deadline_s, salt=job.salt, **more)
    try:
        while True:
            with _translated(job):
                try:
                    output = await anext(steps)
                except StopAsyncIteration:
                    return
            if job.meter is not None:
                job.meter.step(index, output)
            if isinstance(output.error, UsageError):  # a grammar that turned out to be too complex
                raise from_dacheng(output.error, job.prompt_param, job.grammar_param)
            if output.finish_reason not in (None, "stop", "length"):
                raise incomplete(cast(str, output.finish_reason))
            yield index, output
    finally:
        await cast(AsyncGenerator, steps).aclose()


@contextlib.contextmanager
def _translated(job: Job) -> Iterator[None]:
    try:
        yield
    except DachengError as error:
        raise from_dacheng(error, job.prompt_param, job.grammar_param) from error


def _seed(seed: int) -> int:
    return seed if seed < 2**64 else seed - 2**64


def incomplete(reason: str) -> APIError:
    """Why a request ended before it was complete. A deadline would pass again: clients are told not to retry."""
    if reason == "deadline":
        return APIError(504, "the answer took longer than the deadline", code="deadline",
                        headers={"x-should-retry": "false"})  # fmt: skip
    if reason == "cancelled":
        return APIError(503, "the server is stopping", code="stopping", headers={"Retry-After": "5"})
    return APIError(500, "the model gave no distribution for this request", code="model_error")
