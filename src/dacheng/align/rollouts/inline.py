"""The worker of the trainer's own process: the engine reads the weights that are being trained, without a copy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from dacheng.align.rollouts.ask import Ask, Sampling
from dacheng.align.rollouts.worker import Health
from dacheng.data.rollouts import Rollout
from dacheng.engine.blocks import BLOCK
from dacheng.engine.engine import Engine
from dacheng.engine.fused import FusedFloats
from dacheng.engine.request import Request
from dacheng.errors import DachengError, UsageError
from dacheng.models.decoder import Decoder

Continuation = Callable[[str], str | None]
"""Of a text that the model has written so far and that ended: what a tool puts behind it (the model goes on after
that), or None where the answer is complete."""

MAX_TURNS = 8  # continuations of one answer: a model that calls for ever is cut off


class InlineWorker:
    """Writes with `model` itself; an adapter that every row goes through is the policy. Asks of one group share what
    their prompt has computed (the engine's prefix cache). Tokens are written by compiled steps over the float32 weights
    where the model has those (engine.fused.FusedFloats), else by the model itself.

    tokenizer: decodes, and says what ends a text; its EOS is kept as a token of the completion. continuation: for
    answers of several turns, see Continuation; what it puts in is masked out.
    """

    def __init__(
        self, model: Decoder, tokenizer: Any, sampling: Sampling, *, continuation: Continuation | None = None
    ) -> None:
        """Raises UsageError for a tokenizer that does not fit the model."""
        check_vocabulary(model, tokenizer)
        self.model, self.tokenizer, self.sampling, self.continuation = model, tokenizer, sampling, continuation
        self.version = 0
        self._engine: Engine | None = None
        self._room = 0
        self._started: list[Rollout] = []
        self._tokens, self._seconds = 0, 0.0

    def update_weights(self, model: Any, version: int) -> None:
        """The weights have changed in place: what the engine has cached is forgotten. Raises UsageError for another
        model than its own."""
        if model is not self.model:
            raise UsageError(
                "a worker in line reads its own model", field="model", value=type(model).__name__,
                remedy="make an InlineWorker of this model, or use processes",
            )  # fmt: skip
        if self._engine is not None and version != self.version:
            self._engine.weights_changed()
        self.version = version

    def start(self, asks: Sequence[Ask]) -> None:
        self._started = self.generate(asks)

    def collect(self) -> list[Rollout]:
        done, self._started = self._started, []
        return done

    def generate(self, asks: Sequence[Ask]) -> list[Rollout]:
        """One rollout an ask, in order. Raises what Engine.add raises, DachengError where the model breaks (NaN)."""
        began = time.perf_counter()
        engine = self._engine_for(asks)
        texts = [_Text(ask) for ask in asks]
        unfinished = texts
        while unfinished:
            requests = [
                Request(text.ids, self.sampling.params(text.ask, text.left(self.sampling))) for text in unfinished
            ]
            _run(engine, requests, [text.ask.group for text in unfinished])
            for text, request in zip(unfinished, requests):
                text.take(request)
            unfinished = [text for text in unfinished if self._goes_on(text)]
        rollouts = [text.rollout(self.version) for text in texts]
        self._tokens += sum(rollout.own_tokens for rollout in rollouts)
        self._seconds += time.perf_counter() - began
        return rollouts

    @property
    def sampler(self) -> str:
        """The name of the engine's executor; "" before the first rollout."""
        return "" if self._engine is None else self._engine.executor.name

    def health(self) -> Health:
        return Health(1, 0, self.version, self._tokens, self._seconds)

    def close(self) -> None:
        self._engine = None

    def _goes_on(self, text: _Text) -> bool:
        """Asks the continuation, and puts what it says behind the text."""
        if self.continuation is None or text.turns >= MAX_TURNS or text.finish_reason != "stop":
            return False
        if text.ids[-1] == self.tokenizer.eos_id:
            return False
        text.text = self.tokenizer.decode(text.ids[len(text.ask.prompt_ids) :])  # with the words that made it stop
        said = self.continuation(text.text)
        if said is None:
            return False
        ids = self.tokenizer.encode(said)
        if text.left(self.sampling) - len(ids) < 1:
            text.finish_reason = "length"
            return False
        text.put(ids, said)
        return True

    def _engine_for(self, asks: Sequence[Ask]) -> Engine:
        """The engine, made anew where a longer prompt than before needs room."""
        longest = max((len(ask.prompt_ids) for ask in asks), default=1) + self.sampling.max_tokens + 1
        if self._engine is None or longest > self._room:
            self._room = min(longest + BLOCK, self.model.traits.longest_text)
            batch = self.sampling.max_batch
            self._engine = Engine(
                self.model, self.tokenizer, max_batch=batch, max_context=self._room,
                max_tokens_per_step=max(512, batch), executor=self._executor(),
            )  # fmt: skip
        elif isinstance(self._engine.executor, FusedFloats):
            self._engine.executor.weights_changed()  # whoever changed them, and whether or not it was said
        return self._engine

    def _executor(self) -> FusedFloats | None:
        """None for the model itself."""
        return None if FusedFloats.why_not(self.model) else FusedFloats(self.model)


class _Text:
    """An answer that is being written."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.ids, self.mask, self.logps = list(ask.prompt_ids), list[int](), list[float]()
        self.text, self.turns = "", 0
        self.finish_reason: str | None = None

    def left(self, sampling: Sampling) -> int:
        return sampling.max_tokens - len(self.mask)

    def take(self, request: Request) -> None:
        done = request.completion()
        self.ids += done.token_ids
        self.mask += [1] * len(done.token_ids)
        self.logps += done.logprobs or []
        self.text += done.text
        self.finish_reason = done.finish_reason
        self.turns += 1

    def put(self, ids: Sequence[int], said: str) -> None:
        self.ids += ids
        self.mask += [0] * len(ids)
        self.logps += [0.0] * len(ids)
        self.text += said

    def rollout(self, version: int) -> Rollout:
        ask = self.ask
        completion = self.ids[len(ask.prompt_ids) :]
        return Rollout(
            ask.id, list(ask.prompt_ids), completion, self.mask, self.logps, self.text, group=ask.group,
            finish_reason=self.finish_reason, weights_version=version, meta=dict(ask.meta),
        )  # fmt: skip


def _run(engine: Engine, requests: Sequence[Request], groups: Sequence[str]) -> None:
    """Steps until all are finished. Of a group whose prompt fills a block of the cache, the first comes alone until its
    prompt is computed: the others find it there."""
    first: dict[str, Request] = {}
    later: list[Request] = []
    try:
        for request, group in zip(requests, groups):
            if group in first and len(request.prompt_token_ids) > BLOCK:
                later.append(request)
                continue
            first.setdefault(group, request)
            engine.add(request)
        if later:
            while any(r.computed < len(r.prompt_token_ids) and not r.finished for r in first.values()):
                engine.step()
            for request in later:
                engine.add(request)
        for request in requests:
            while not request.finished:
                engine.step()
            if request.error is not None:
                raise request.error
    finally:
        for request in requests:
            engine.cancel(request.id)


def check_vocabulary(model: Decoder, tokenizer: Any) -> None:
    """Raises UsageError for a tokenizer that has tokens which the model has not, or none that ends a text."""
    if tokenizer.vocab_size > model.traits.vocab_size:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.traits.vocab_size}",
            field="vocab_size", value=tokenizer.vocab_size, remedy="use the tokenizer that the model was trained with",
        )  # fmt: skip
    if getattr(tokenizer, "eos_id", None) is None:
        raise DachengError("the tokenizer has no end of text", field="eos_token", remedy="name it in its configuration")
