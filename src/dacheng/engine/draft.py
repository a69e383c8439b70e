"""Guessing the next tokens with a small model that shares the vocabulary (Leviathan et al. 2023; Chen et al. 2023)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dacheng.engine.adjust import adjusted
from dacheng.engine.cache import PagedCache
from dacheng.engine.executor import Executor
from dacheng.engine.request import Request, Status
from dacheng.engine.sampler import draw, greedy, probabilities
from dacheng.engine.state import SamplerState
from dacheng.engine.step_plan import Chunk, StepPlan
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder


def check_draft(draft: Decoder, model: Decoder, speculate: int) -> None:
    """Raises UsageError for a draft model that cannot guess for `model`."""
    if draft.traits.vocab_size != model.traits.vocab_size:
        raise UsageError(
            "the draft model has another vocabulary",
            field="draft",
            value=draft.traits.vocab_size,
            remedy=f"use one of {model.traits.vocab_size} tokens, with the model's own tokenizer",
        )
    if speculate < 1:
        raise UsageError(
            "a draft model guesses nothing", field="speculate", value=speculate, remedy="say how many tokens: 4"
        )


@dataclass(slots=True)
class _Text:
    """How far the draft model has read one request. `reader` has the known tokens and, behind them, guesses; its own
    slot, and how many are computed. confirmed: leading tokens that the request knew when it was last looked at."""

    request: Request
    reader: Request
    confirmed: int = 0
    broken: bool = False  # the draft model gave a NaN

    def follow(self) -> None:
        """Takes over what the request knows now; guesses that were wrong are computed again."""
        known, read = self.request.known, self.reader.known
        same, stop = self.confirmed, min(self.reader.computed, len(known))
        while same < stop and read[same] == known[same]:
            same += 1
        self.reader.computed = min(self.reader.computed, same)
        read[self.confirmed :] = known[self.confirmed :]
        self.confirmed = len(known)


@dataclass(slots=True)
class _Turn:
    """One request in the forwards of one step: first what is unread, then guess after guess."""

    text: _Text
    count: int  # tokens of the next forward
    most: int  # guesses wanted; 0: it only reads
    state: SamplerState | None = None  # a fork: what is tried does not reach the request's own
    drafts: list[int] = field(default_factory=list)
    proposals: list[Tensor] = field(default_factory=list)


class DraftModel:
    """A drafter (see speculation.Drafter) with a cache of its own.

    Guesses follow the request's parameters, grammar and penalties included. Where a request samples without a seed of
    its own they are drawn, and verified by rejection sampling. Where it has one, the text must stay the one that the
    seed gives: they are drawn with the very numbers that the engine will draw with next, and are right where that gives
    the same token. draws: False does so always.

    A text that it has no room for, in its cache or its context, goes without guesses: `counts` says how often
    (drafts_without_room, drafts_too_long, drafts_broken).
    """

    def __init__(
        self,
        model: Decoder,
        cache: PagedCache,
        executor: Executor,
        *,
        vocab_size: int,
        seed: int = 0,
        draws: bool = True,
    ) -> None:
        self.model, self.cache, self.executor = model, cache, executor
        self.vocab_size, self.draws = vocab_size, draws
        self.counts: Counter[str] = Counter()
        self._texts: dict[int, _Text] = {}  # by request id
        self._random = torch.Generator().manual_seed(seed)  # of the guesses: verification has the request's stream

    def draft(self, wanted: Sequence[tuple[Request, int]], budget: int) -> None:
        for text in [text for text in self._texts.values() if text.request.status is not Status.RUNNING]:
            self.forget(text.request)  # preempted: its blocks are others' now
        turns = []
        for request, most in wanted:
            turn = self._turn(request, most, budget)
            if turn is not None:
                turns.append(turn)
                budget -= turn.count
        live = turns
        while live:
            live = self._advance(live)
        for turn in turns:
            request = turn.text.request
            request.drafts, request.proposals = turn.drafts, turn.proposals

    def forget(self, request: Request) -> None:
        text = self._texts.pop(request.id, None)
        if text is not None:
            self.cache.close(text.reader.slot, sound=not text.broken)

    def _turn(self, request: Request, most: int, budget: int) -> _Turn | None:
        most = min(most, self.model.traits.longest_text - len(request.known))
        if most <= 0:
            self.counts["drafts_too_long"] += 1
            return None
        text = self._texts.get(request.id) or self._open(request)
        text.follow()
        if text.broken:
            self.counts["drafts_broken"] += 1
            return None
        unread = text.reader.pending
        count = min(unread, budget)
        if not count or not self.cache.reserve(text.reader.slot, text.reader.computed + count):
            self.counts["drafts_without_room"] += 1
            return None
        if count < unread:
            return _Turn(text, count, 0)
        assert request.sampler is not None
        return _Turn(text, count, most, request.sampler.fork())

    def _open(self, request: Request) -> _Text:
        reader = Request(request.known)
        reader.slot, reader.id = self.cache.open(), request.id
        reader.computed = self.cache.adopt(reader.slot, request.keys(), len(request.known) - 1)
        self._texts[request.id] = text = _Text(request, reader, len(request.known))
        return text

    def _advance(self, turns: list[_Turn]) -> list[_Turn]:
        """One forward; returns those that want another."""
        chunks, by_id = [], {turn.text.request.id: turn for turn in turns}
        for turn in turns:
            start, stop = turn.text.reader.computed, turn.text.reader.computed + turn.count
            rows = range(stop - 1, stop) if turn.most else range(0)
            chunks.append(Chunk(turn.text.reader, start, stop, rows))
        plan = StepPlan.of(chunks)
        result = self.executor.run(plan, self.cache)
        asked = []
        for chunk in plan.chunks:
            turn = by_id[chunk.request.id]
            text = turn.text
            text.reader.computed = chunk.stop
            self.cache.commit(text.reader.slot, min(chunk.stop, text.confirmed), text.request.keys())
            if turn.most:
                asked.append(turn)
        if asked:
            self._choose(asked, result.logits[:, : self.vocab_size])
        return [turn for turn in asked if self._goes_on(turn)]

    def _choose(self, turns: list[_Turn], logits_RV: Tensor) -> None:
        """The next guess of each; none where there is no distribution, or no token that the grammar allows."""
        states = [turn.state for turn in turns if turn.state is not None]
        for turn, largest in zip(turns, logits_RV.amax(-1).tolist()):
            turn.text.broken = not math.isfinite(largest)
        logits_RV = adjusted(logits_RV, states)
        rows = [
            row
            for row, (largest, state) in enumerate(zip(logits_RV.amax(-1).tolist(), states))
            if math.isfinite(largest) and state.refusal is None
        ]
        drawn = [row for row in rows if states[row].params.temperature > 0]
        fixed = [row for row in rows if states[row].params.temperature == 0]
        if fixed:
            for row, token in zip(fixed, greedy(logits_RV[fixed])[0]):
                turns[row].drafts.append(token)
        if drawn:
            q_RV = probabilities(logits_RV[drawn], [states[row].params for row in drawn])
            q_RV = q_RV / q_RV.sum(-1, keepdim=True)
            free = [self.draws and states[row].params.seed is None for row in drawn]
            uniforms = [self._uniform() if own else states[row].uniform() for row, own in zip(drawn, free)]
            tokens = draw(q_RV, torch.tensor(uniforms, dtype=torch.float64, device=q_RV.device)).tolist()
            for row, q_V, token, own in zip(drawn, q_RV, tokens, free):
                turns[row].drafts.append(token)
                if own:
                    turns[row].proposals.append(q_V)

    def _uniform(self) -> float:
        return torch.rand((), generator=self._random, dtype=torch.float64).item()

    def _goes_on(self, turn: _Turn) -> bool:
        """Reads its newest guess next, if it is to guess more."""
        assert turn.state is not None
        reader = turn.text.reader
        guessed = len(reader.known) - turn.text.confirmed
        if len(turn.drafts) == guessed or len(turn.drafts) == turn.most or turn.drafts[-1] in turn.text.request.end_ids:
            return False
        turn.state.note(turn.drafts[-1])
        if turn.state.is_done or not self.cache.reserve(reader.slot, reader.computed + 1):
            return False
        reader.known.append(turn.drafts[-1])
        turn.count = 1
        return True
