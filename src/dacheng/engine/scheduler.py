"""Who gets how many tokens of the next step."""

from __future__ import annotations

from collections import deque

from dacheng.engine.cache import KVCache
from dacheng.engine.request import Request, Status
from dacheng.engine.step_plan import Chunk, StepPlan
from dacheng.errors import DachengError, UsageError


class Scheduler:
    """First come, first served, under one budget of tokens a step.

    Running requests are served in the order in which they were admitted, then waiting ones are admitted while there is
    budget and a slot. An earlier request can leave budget over only if it caught up, so a long prompt delays those
    behind it by its own chunks and no more, and a request that generates gets its token in every step.
    """

    def __init__(self, cache: KVCache, *, max_batch: int, max_tokens_per_step: int, max_context: int) -> None:
        """Raises UsageError when some running request could be left without a token in every step."""
        if max_batch < 1:
            raise UsageError("a batch holds at least one request", field="max_batch", value=max_batch, remedy="use 1")
        if max_tokens_per_step < max_batch:
            raise UsageError(
                "the token budget must give every running request its next token",
                field="max_tokens_per_step",
                value=max_tokens_per_step,
                remedy=f"at least max_batch = {max_batch}",
            )
        self.cache, self.max_batch = cache, max_batch
        self.max_tokens_per_step, self.max_context = max_tokens_per_step, max_context
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def check(self, request: Request) -> None:
        """Raises DachengError for a request that can never fit."""
        length, room = len(request.prompt_token_ids), request.room
        if length == 0:
            raise DachengError(
                "the prompt has no tokens", field="prompt_token_ids", value=[], remedy="start from BOS or EOS"
            )
        if length + room > self.max_context:
            raise DachengError(
                f"a prompt of {length} tokens"
                + (" and one to generate" if room > 0 else "")
                + " does not fit the context",
                field="max_context",
                value=self.max_context,
                remedy=f"shorten the prompt to {self.max_context - room} tokens, or use a model with a longer context",
            )

    def add(self, request: Request) -> None:
        """Queues a request that `check` let through."""
        request.status = Status.WAITING
        self.waiting.append(request)

    def schedule(self) -> StepPlan:
        """Gives out the budget. Of a request, this changes nothing but its place in the cache."""
        budget = self.max_tokens_per_step
        chunks: list[Chunk] = []
        for request in self.running:
            budget -= self._give(request, budget, chunks)
        while self.waiting and budget and len(self.running) < self.max_batch:
            request = self.waiting.popleft()
            request.slot, request.status = self.cache.open(), Status.RUNNING
            self.running.append(request)
            budget -= self._give(request, budget, chunks)
        return StepPlan.of(chunks)

    def _give(self, request: Request, budget: int, chunks: list[Chunk]) -> int:
        count = min(request.pending, budget)
        if count:
            self.cache.reserve(request.slot, request.computed + count)
            chunks.append(Chunk.of(request, count))
        return count

    def drop(self, request: Request) -> None:
        """Takes the request out, wherever it is, and frees its slot."""
        if request.status is Status.WAITING:
            self.waiting.remove(request)
        elif request.status is Status.RUNNING:
            self.running.remove(request)
            self.cache.close(request.slot)
            request.slot = -1
