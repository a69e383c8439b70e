"""Guessing the next tokens from what the text itself said before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dacheng.engine.request import Request

LONGEST, SHORTEST = 4, 2  # tokens of the n-grams that are looked up, longest first


class Lookup:
    """The n-grams of one text, and what followed each the last time (Saxena 2023, prompt lookup decoding)."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # position behind the n-gram
        self._indexed = 0  # n-grams that end before this position are known

    def draft(self, known: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that followed the end of the text where it stood before; O(1) for each new token."""
        for stop in range(max(SHORTEST, self._indexed), len(known)):
            for n in range(SHORTEST, min(LONGEST, stop) + 1):
                self._after[tuple(known[stop - n : stop])] = stop
        self._indexed = len(known)
        for n in range(min(LONGEST, len(known)), SHORTEST - 1, -1):
            start = self._after.get(tuple(known[-n:]))
            if start is not None:
                return list(known[start : start + most])
        return []


class PromptLookup:
    """The drafter that costs nothing (see speculation.Drafter): each request's own text."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._texts: dict[int, Lookup] = {}  # by request id

    def draft(self, wanted: Sequence[tuple[Request, int]], budget: int) -> None:
        for request, most in wanted:
            request.drafts = self._texts.setdefault(request.id, Lookup()).draft(request.known, most)

    def forget(self, request: Request) -> None:
        self._texts.pop(request.id, None)
