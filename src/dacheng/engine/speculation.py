"""Guessing the next tokens from what the text itself said before, so that one forward computes several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dacheng.engine.request import Request

LONGEST, SHORTEST = 4, 2  # tokens of the n-grams that are looked up, longest first
FIRST_DRAFT = 4  # tokens guessed at first; doubled when all were right, halved when none was
PLAIN_STEPS = 4  # measured without drafts before any are made
REMEASURED = 32  # one step in so many goes without drafts, to know what that costs now
TRIAL = 4  # steps with drafts, at least, before they are judged
PAUSE = 64  # steps without drafts after they did not pay; doubled each time
MEMORY = 0.2  # weight of the newest step in the moving means


class Lookup:
    """The n-grams of one text, and what followed each the last time (Saxena 2023, prompt lookup decoding)."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # position behind the n-gram
        self._indexed = 0  # n-grams that end before this position are known
        self.most = FIRST_DRAFT

    def draft(self, known: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that followed the end of the text where it stood before; O(1) for each new token."""
        for stop in range(max(SHORTEST, self._indexed), len(known)):
            for n in range(SHORTEST, min(LONGEST, stop) + 1):
                self._after[tuple(known[stop - n : stop])] = stop
        self._indexed = len(known)
        for n in range(min(LONGEST, len(known)), SHORTEST - 1, -1):
            start = self._after.get(tuple(known[-n:]))
            if start is not None:
                return list(known[start : start + min(most, self.most)])
        return []

    def learn(self, drafted: int, accepted: int, most: int) -> None:
        if accepted == drafted:
            self.most = min(most, 2 * self.most)
        elif accepted == 0:
            self.most = max(1, self.most // 2)


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
    drafts bring fewer tokens per second; so text that never repeats itself costs a few steps in a hundred.

    most: tokens that are guessed for a request in one step; 0 is off. `engine` samples each position as it would
    without a draft, and goes on while that is the drafted token: the text is the same, and sampling stays exact
    (Leviathan et al. 2023, with a proposal that puts all probability on one token).
    """

    most: int = 0
    step: int = 0
    resume: int = 0  # the step at which a pause ends
    pause: int = PAUSE
    paces: dict[int, _Pace] = field(default_factory=dict)

    @property
    def paused(self) -> bool:
        return self.step < self.resume

    def propose(self, running: Sequence[Request], budget: int) -> None:
        """Sets the drafts of requests that generate, `budget` tokens at most beside the one that each gets anyway."""
        if not self.most:
            return
        self.step += 1
        pace = self.paces.setdefault(len(running), _Pace())
        drafting = not self.paused and pace.plain_steps >= PLAIN_STEPS and self.step % REMEASURED != 0
        left = budget - len(running)
        for request in running:
            request.drafts = []
            if drafting and left > 0 and request.drafts_allowed:
                request.lookup = request.lookup or Lookup()
                request.drafts = request.lookup.draft(request.known, min(self.most, left, request.tokens_left - 1))
                left -= len(request.drafts)

    def learn(self, request: Request, drafted: int, accepted: int) -> None:
        request.drafts = []
        if drafted and request.lookup is not None:
            request.lookup.learn(drafted, accepted, self.most)

    def note(self, seconds: float, requests: int, tokens: int, drafted: bool) -> None:
        """A step in which `requests` generated and nothing else was computed."""
        if not self.most:
            return
        pace = self.paces.setdefault(requests, _Pace())
        pace.note(seconds, tokens / requests, drafted)
        if drafted and pace.drafted_steps >= TRIAL:
            if pace.gain < 1.0:
                self.resume, self.pause = self.step + self.pause, min(2 * self.pause, 64 * PAUSE)
                pace.drafted_steps = 0
            elif pace.drafted_steps % REMEASURED == 0:
                self.pause = PAUSE
