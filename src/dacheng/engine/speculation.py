"""Guessing the next tokens, so that one forward computes several: who gets guesses, how many, and whether they pay."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dacheng.engine.lookup import PromptLookup
from dacheng.engine.request import Request

FIRST_DRAFT = 4  # tokens guessed at first; doubled when all were right, halved when none was
PLAIN_STEPS = 4  # measured without drafts before any are made
REMEASURED = 32  # one step in so many goes without drafts, to know what that costs now
TRIAL = 4  # steps with drafts, at least, before they are judged
PAUSE = 64  # steps without drafts after they did not pay; doubled each time
MEMORY = 0.2  # weight of the newest step in the moving means


class Drafter(Protocol):
    """Who guesses: the text itself (lookup.PromptLookup) or a small model (draft.DraftModel). counts: how often, and
    why, a request went without."""

    counts: Counter[str]

    def draft(self, wanted: Sequence[tuple[Request, int]], budget: int) -> None:
        """Sets `drafts` of each request, at most so many tokens (1 or more), and `proposals` where they were drawn. May
        compute `budget` tokens at a time. A request may go without."""
        ...

    def forget(self, request: Request) -> None:
        """It is finished."""
        ...


@dataclass(slots=True)
class _Pace:
    """Moving means over steps of one batch size."""

    plain_s: float = 0.0
    drafted_s: float = 0.0
    tokens: float = 0.0  # that a request got in a step with drafts
    plain_steps: int = 0
    drafted_steps: int = 0

    def note(self, seconds: float, tokens: float, drafted: bool) -> None:
        if drafted:
            first, self.drafted_steps = self.drafted_steps == 0, self.drafted_steps + 1
            self.drafted_s = seconds if first else self.drafted_s + MEMORY * (seconds - self.drafted_s)
            self.tokens = tokens if first else self.tokens + MEMORY * (tokens - self.tokens)
        else:
            # The fastest of the first ones: those include warming up.
            self.plain_steps += 1
            mean = self.plain_s + MEMORY * (seconds - self.plain_s)
            early = seconds if self.plain_steps == 1 else min(seconds, self.plain_s)
            self.plain_s = early if self.plain_steps <= PLAIN_STEPS else mean

    @property
    def gain(self) -> float:
        """Tokens per second with drafts over those without."""
        return self.tokens * self.plain_s / self.drafted_s if self.drafted_s else 1.0


@dataclass(slots=True)
class Speculation:
    """Which requests get drafts in a step. It measures steps with and without them, by batch size, and pauses when
    drafts bring fewer tokens per second; so text that nobody can guess costs a few steps in a hundred. (What a draft
    model takes to read a text before its first guess is not part of that.)

    most: tokens that are guessed for a request in one step; 0 is off. A guess without a proposal (greedy, looked up, or
    of a request with a seed) is compared with what the engine samples without it: the same text, token by token. One
    with a proposal goes through rejection sampling: the same distribution (Leviathan et al. 2023, algorithm 1; see
    sampler.verify).
    """

    most: int = 0
    drafter: Drafter = field(default_factory=PromptLookup)
    step: int = 0
    resume: int = 0  # the step at which a pause ends
    pause: int = PAUSE
    paces: dict[int, _Pace] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)  # tokens guessed for a request next time, by its id
    spent: float = 0.0  # seconds that this step's guesses took

    @property
    def paused(self) -> bool:
        return self.step < self.resume

    def propose(self, running: Sequence[Request], budget: int, prompts_due: bool = False) -> None:
        """Sets the drafts of requests that generate, `budget` tokens at most beside the one that each gets anyway.
        prompts_due: the step computes prompts too. Then there are none: such a step has no room to spare, and cannot
        tell what drafts would bring."""
        if not self.most:
            return
        self.step += 1
        pace = self.paces.setdefault(len(running), _Pace())
        measured = pace.plain_steps >= PLAIN_STEPS and self.step % REMEASURED != 0
        drafting = measured and not self.paused and not prompts_due
        left, wanted = budget - len(running), list[tuple[Request, int]]()
        for request in running:
            request.drafts, request.proposals = [], []
            length = self.lengths.get(request.id, FIRST_DRAFT)
            most = min(self.most, left, request.tokens_left - 1, length)
            if drafting and request.drafts_allowed and most > 0:
                wanted.append((request, most))
                left -= most
        started = time.perf_counter()
        if wanted:
            self.drafter.draft(wanted, budget)
        self.spent = time.perf_counter() - started

    def learn(self, request: Request, drafted: int, accepted: int) -> None:
        request.drafts, request.proposals = [], []
        if drafted and not request.finished:
            length = self.lengths.get(request.id, FIRST_DRAFT)
            if accepted == drafted:
                self.lengths[request.id] = min(self.most, 2 * length)
            elif accepted == 0:
                self.lengths[request.id] = max(1, length // 2)

    def forget(self, request: Request) -> None:
        self.lengths.pop(request.id, None)
        self.drafter.forget(request)

    def note(self, seconds: float, requests: int, tokens: int, drafted: bool) -> None:
        """A step in which `requests` generated and nothing else was computed."""
        if not self.most:
            return
        pace = self.paces.setdefault(requests, _Pace())
        pace.note(seconds + (self.spent if drafted else 0.0), tokens / requests, drafted)
        if drafted and pace.drafted_steps >= TRIAL:
            if pace.gain < 1.0:
                self.resume, self.pause = self.step + self.pause, min(2 * self.pause, 64 * PAUSE)
                pace.drafted_steps = 0
            elif pace.drafted_steps % REMEASURED == 0:
                self.pause = PAUSE
