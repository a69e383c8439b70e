"""What one step computes: pieces of requests, packed into a single row of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from dacheng.engine.request import Request
from dacheng.engine.sampler import Proposal


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens start..stop-1 of a request, to be computed in this step: those it knows, and the drafts that are guessed
    behind them. `logit_rows`: the positions among them whose logits are needed. proposals: (V,) each, what the drafts
    were drawn from; none where they were not drawn."""

    request: Request
    start: int
    stop: int
    logit_rows: range
    drafts: tuple[int, ...] = ()  # the last of its tokens
    proposals: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, request: Request, count: int) -> Chunk:
        """The next `count` tokens of a request."""
        start, stop = request.computed, request.computed + count
        drafts = tuple(request.drafts[: max(0, stop - len(request.known))])
        proposals = tuple(request.proposals[: len(drafts)])
        return cls(request, start, stop, request.logit_rows(start, stop), drafts, proposals)

    def proposal(self, depth: int) -> Proposal | None:
        """The draft at `depth` and what it was drawn from."""
        return (self.drafts[depth], self.proposals[depth]) if depth < len(self.proposals) else None

    @property
    def count(self) -> int:
        return self.stop - self.start

    @property
    def text(self) -> list[int]:
        """All tokens of the request up to `stop`, at least, while the step has not been read."""
        return [*self.request.known, *self.drafts] if self.drafts else self.request.known

    @property
    def token_ids(self) -> list[int]:
        return self.text[self.start : self.stop]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward: the chunks, one after the other in a single row of tokens.

    Single tokens come first, by slot: requests that were admitted together mostly lie at equal distances in the cache,
    and attend together.
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

    @property
    def drafted(self) -> int:
        return sum(len(chunk.drafts) for chunk in self.chunks)

    @property
    def decodes(self) -> bool:
        """Nothing is computed but the last token of requests that generate, and guesses."""
        return all(chunk.logit_rows and chunk.count == len(chunk.drafts) + 1 for chunk in self.chunks)

    def rows(self) -> Iterator[tuple[Chunk, slice]]:
        """Each chunk with its rows of the executor's logits (R, V): none where it asked for none."""
        first = 0
        for chunk in self.chunks:
            yield chunk, slice(first, first + len(chunk.logit_rows))
            first += len(chunk.logit_rows)
