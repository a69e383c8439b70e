"""Who gets how many tokens of the next step."""

from __future__ import annotations

from collections import Counter, deque

from dacheng.engine.cache import PagedCache
from dacheng.engine.request import Request, Status
from dacheng.engine.step_plan import Chunk, StepPlan
from dacheng.errors import DachengError, UsageError


class Scheduler:
    """First come, first served, under one budget of tokens a step.

    Running requests are served in the order in which they were admitted, then waiting ones are admitted while there is
    budget, a slot, and room for all that they know. An earlier request can leave budget over only if it caught up, so a
    long prompt delays those behind it by its own chunks and no more, and a request that generates gets its token in
    every step. When the cache is full, the request that came last gives its blocks up and waits in front of all others,
    to be computed again (vLLM's preemption by recompute); what of it is still in the cache then is not.

    counts: prefix_cache_queries and prefix_cache_hits (tokens), preemptions.
    """

    def __init__(self, cache: PagedCache, *, max_batch: int, max_tokens_per_step: int, max_context: int) -> None:
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
        self.counts: Counter[str] = Counter()

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    @property
    def prompts_due(self) -> bool:
        """Whether the next step computes parts of prompts, as far as that can be told before."""
        admits = bool(self.waiting) and len(self.running) < self.max_batch
        return admits or any(request.pending > 1 for request in self.running)

    @property
    def longest(self) -> int:
        """Tokens of one request, prompt included, that context and cache have room for."""
        return min(self.max_context, self.cache.max_tokens)

    def check(self, request: Request) -> None:
        """Raises DachengError for a request that can never fit."""
        length, room = len(request.prompt_token_ids), request.room
        if length == 0:
            raise DachengError(
                "the prompt has no tokens", field="prompt_token_ids", value=[], remedy="start from BOS or EOS"
            )
        if length + room > self.longest:
            cache = self.longest < self.max_context
            raise DachengError(
                f"a prompt of {length} tokens"
                + (" and one to generate" if room > 0 else "")
                + f" does not fit the {'cache' if cache else 'context'}",
                field="cache_tokens" if cache else "max_context",
                value=self.longest,
                remedy=f"shorten the prompt to {self.longest - room} tokens, or use "
                + ("a larger cache" if cache else "a model with a longer context"),
            )

    def add(self, request: Request) -> None:
        """Queues a request that `check` let through."""
        request.status = Status.WAITING
        self.waiting.append(request)

    def schedule(self) -> StepPlan:
        """Gives out the budget. Of a request that stays, this changes nothing but its place in the cache."""
        budget, chunks, preempted = self.max_tokens_per_step, list[Chunk](), False
        served = 0
        while served < len(self.running):  # it gets shorter, from behind, where requests are preempted
            request = self.running[served]
            count = min(request.pending, budget)
            while request.status is Status.RUNNING and not self._reserved(request, count):
                if request.drafts:  # a guess takes nobody's blocks
                    request.drafts, request.proposals, count = [], [], 1
                else:
                    self._preempt(self.running[-1])
                    preempted = True
            if request.status is Status.RUNNING and count:
                chunks.append(Chunk.of(request, count))
                budget -= count
            served += 1
        while self.waiting and budget and len(self.running) < self.max_batch and not preempted:
            count = self._admit(self.waiting[0], budget)
            if not count:
                break
            self.running.append(self.waiting.popleft())
            chunks.append(Chunk.of(self.running[-1], count))
            budget -= count
        return StepPlan.of(chunks)

    def _reserved(self, request: Request, count: int) -> bool:
        return not count or self.cache.reserve(request.slot, request.computed + count)

    def _admit(self, request: Request, budget: int) -> int:
        """Gives a waiting request a slot with all that the cache knows of it, and returns how many tokens it computes
        in this step; 0 where there is no room for all that it knows."""
        slot = self.cache.open()
        keys = request.keys()
        found = self.cache.adopt(slot, keys, request.skippable)
        count = min(len(request.known) - found, budget)
        if not self.cache.fits(slot, len(request.known)) or not self.cache.reserve(slot, found + count):
            self.cache.close(slot)
            return 0
        request.slot, request.status, request.computed = slot, Status.RUNNING, found
        if not request.preemptions:
            request.cached_tokens = found
        self.counts.update({"prefix_cache_queries": len(request.known), "prefix_cache_hits": found})
        return count

    def _preempt(self, request: Request) -> None:
        """Takes a running request's blocks away; it will be the first to be admitted."""
        self.drop(request)
        request.restart()
        request.preemptions += 1
        request.status = Status.WAITING
        self.waiting.appendleft(request)
        self.counts["preemptions"] += 1

    def commit(self, plan: StepPlan) -> None:
        """The plan was run: its tokens are computed."""
        for chunk in plan.chunks:
            request = chunk.request
            request.computed = min(chunk.stop, len(request.known))  # of a guess, that is known when it is confirmed
            self.cache.commit(request.slot, request.computed, request.keys())

    def drop(self, request: Request) -> None:
        """Takes the request out, wherever it is, and frees its blocks."""
        if request.status is Status.WAITING:
            self.waiting.remove(request)
        elif request.status is Status.RUNNING:
            self.running.remove(request)
            self.cache.close(request.slot, sound=request.sound)
            request.slot = -1
