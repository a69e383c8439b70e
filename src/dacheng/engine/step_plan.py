"""What one step computes: pieces of requests, packed into a single row of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dacheng.engine.request import Request


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens known[start:stop] of a request, to be computed in this step; `logit_rows`: the positions among them whose
    logits are needed."""

    request: Request
    start: int
    stop: int
    logit_rows: range

    @classmethod
    def of(cls, request: Request, count: int) -> Chunk:
        """The next `count` tokens of a request."""
        start, stop = request.computed, request.computed + count
        return cls(request, start, stop, request.logit_rows(start, stop))

    @property
    def count(self) -> int:
        return self.stop - self.start

    @property
    def token_ids(self) -> list[int]:
        return self.request.known[self.start : self.stop]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward: the chunks, one after the other in a single row of tokens.

    Single tokens come first, by slot: neighbours in the cache are neighbours in the row, and attend together.
    """

    chunks: list[Chunk]

    @classmethod
    def of(cls, chunks: list[Chunk]) -> StepPlan:
        return cls(sorted(chunks, key=lambda chunk: (chunk.count > 1, chunk.request.slot)))

    def __bool__(self) -> bool:
        return bool(self.chunks)

    @property
    def tokens(self) -> int:
        return sum(chunk.count for chunk in self.chunks)

    def rows(self) -> Iterator[tuple[Chunk, slice]]:
        """Each chunk with its rows of the executor's logits (R, V): none where it asked for none."""
        first = 0
        for chunk in self.chunks:
            yield chunk, slice(first, first + len(chunk.logit_rows))
            first += len(chunk.logit_rows)

    def commit(self) -> None:
        """The step was run: its tokens are computed."""
        for chunk in self.chunks:
            chunk.request.computed = chunk.stop

    def restart(self) -> None:
        """The step broke off, and may have overwritten what its requests still need."""
        for chunk in self.chunks:
            chunk.request.restart()
