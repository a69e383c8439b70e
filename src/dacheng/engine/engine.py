"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from dacheng.engine.boundary import Encodes, encode_pair, encode_prompt
from dacheng.engine.cache import SlotCache
from dacheng.engine.executor import Eager, Executor, StepResult
from dacheng.engine.params import check_params
from dacheng.engine.readings import Embedding, Reading, Scoring
from dacheng.engine.request import Request, Status
from dacheng.engine.sampler import Choice, SamplerState, sample
from dacheng.engine.scheduler import Scheduler
from dacheng.engine.step_plan import StepPlan
from dacheng.engine.stops import OutputText, StreamDecoder
from dacheng.errors import DachengError, UsageError
from dacheng.models.decoder import Decoder
from dacheng.protocols import Completion, SamplingParams

Prompt = str | Sequence[int]


class Tokenizer(Encodes, Protocol):
    """What the engine asks of dacheng.text.Tokenizer."""

    vocab_size: int

    def stream_decoder(self) -> StreamDecoder: ...


@dataclass(slots=True)
class StepOutput:
    """What one step added to one request. `text` is what may be shown now; it can lag behind the tokens."""

    request_id: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] | None = None
    finish_reason: str | None = None


class Engine:
    """Continuous batching over one model (a dacheng.protocols.LanguageModel).

    model: a decoder with traits, cache_spec() and head(). tokenizer: None for work on token ids alone. max_batch:
    requests that run together. max_tokens_per_step: the budget of a step, so the longest a running request waits for a
    prompt of another. max_context: tokens of one request, prompt included; the model's own by default. seed: of the
    seeds of requests that bring none.

    Requests may be added and cancelled between any two steps. Everything that came of one stays on the Request, so
    `generate`, `stream` and a caller's own loop over `step` may share an engine (not threads: one thread drives it).
    A greedy text in float32 is the same in any batch until the first near-tie, which `metrics` count.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | None = None,
        *,
        max_batch: int = 16,
        max_tokens_per_step: int = 512,
        max_context: int | None = None,
        executor: Executor | None = None,
        seed: int = 0,
    ) -> None:
        """Raises UsageError when the limits contradict each other or the model."""
        traits = model.traits
        self.max_context = traits.longest_text if max_context is None else max_context
        if not 1 < self.max_context <= traits.longest_text:
            raise UsageError(
                "the context must hold a prompt and a token, and the model has positions only so far",
                field="max_context",
                value=max_context,
                remedy=f"from 2 to {traits.longest_text}",
            )
        self.model, self.tokenizer = model, tokenizer
        # Rows past the tokenizer's vocabulary (padding of the matrix) mean nothing and are never sampled.
        self.vocab_size = traits.vocab_size if tokenizer is None else min(traits.vocab_size, tokenizer.vocab_size)
        weights = next(model.parameters())
        self.cache = SlotCache(
            model.cache_spec(),
            max_slots=max_batch,
            max_context=self.max_context,
            dtype=weights.dtype,
            device=weights.device,
        )
        self.scheduler = Scheduler(
            self.cache, max_batch=max_batch, max_tokens_per_step=max_tokens_per_step, max_context=self.max_context
        )
        self.executor = Eager(model) if executor is None else executor
        self.metrics: Counter[str] = Counter()
        self._requests: dict[int, Request] = {}  # those that are not finished
        self._added = 0
        self._seeds = torch.Generator().manual_seed(seed)

    def add(self, request: Request) -> int:
        """Queues a request and returns its id.

        Raises DachengError for a prompt that can never fit or has ids outside the vocabulary, UsageError for sampling
        parameters out of range; the engine is then as it was.
        """
        self._check(request)
        if not isinstance(request, Reading):
            self._prepare(request)
        request.id, request.added_at = self._added, time.perf_counter()
        self._added += 1
        self._requests[request.id] = request
        self.scheduler.add(request)
        return request.id

    def cancel(self, request_id: int) -> bool:
        """Ends a request, waiting or running, and frees its slot. False when it is not there (any more)."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._finish(request, "cancelled")
        return True

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def step(self) -> list[StepOutput]:
        """One forward, in which every request that has its turn comes nearer to its next token.

        A request for which the model gives no distribution (a NaN) is finished with reason "error"; it is the only one
        that suffers. When the executor raises, the requests of the step are computed anew from the next step on.
        """
        plan = self.scheduler.schedule()
        if not plan:
            return []
        started = time.perf_counter()
        try:
            result = self.executor.run(plan, self.cache)
        except BaseException:
            plan.restart()
            raise
        self.metrics.update({"steps": 1, "tokens_computed": plan.tokens, "run_s": time.perf_counter() - started})
        return self._postprocess(plan, result)

    def _postprocess(self, plan: StepPlan, result: StepResult) -> list[StepOutput]:
        """Samples, takes the plan's tokens as computed, and hands each request what came of its chunk."""
        choices = iter(self._sample(plan, result))
        plan.commit()
        outputs = []
        for chunk, rows in plan.rows():
            request = chunk.request
            if isinstance(request, Reading):
                sound = request.read(chunk.logit_rows, result.logits[rows], result.hidden_sums.get(request.id))
                if not sound or not request.pending:
                    outputs.append(self._finish(request, "stop" if sound else "error"))
            elif chunk.logit_rows:
                choice = next(choices)
                outputs.append(self._advance(request, choice) if choice else self._finish(request, "error"))
        return outputs

    def _sample(self, plan: StepPlan, result: StepResult) -> list[Choice | None]:
        """One token for each generating request that asked for logits, in plan order."""
        asked = [(c.request, rows) for c, rows in plan.rows() if c.logit_rows and not isinstance(c.request, Reading)]
        if not asked:
            return []
        logits = result.logits[:, : self.vocab_size]
        if len(asked) < len(logits):
            logits = torch.cat([logits[rows] for _, rows in asked])
        return sample(logits, [request.sampler for request, _ in asked if request.sampler is not None])

    def _advance(self, request: Request, choice: Choice) -> StepOutput:
        """Gives a request its next token, and ends it when that was the last."""
        token, params = choice.token_id, request.params
        if request.first_token_at is None:
            request.first_token_at = time.perf_counter()
        request.known.append(token)
        request.near_ties += choice.near_tie
        self.metrics.update({"tokens_generated": 1, "near_ties": choice.near_tie})
        assert request.sampler is not None
        request.sampler.note(token)
        output = StepOutput(request.id, [token])
        if choice.logprob is not None:
            request.logprobs.append(choice.logprob)
            output.logprobs = [choice.logprob]
        ended = token in request.end_ids
        if request.text is not None and not ended:
            output.text = request.text.push(token)
            ended = request.text.stopped
        if ended:
            return self._finish(request, "stop", output)
        if len(request.token_ids) >= params.max_tokens or len(request.known) >= self.max_context:
            return self._finish(request, "length", output)
        return output

    def _finish(self, request: Request, reason: str, output: StepOutput | None = None) -> StepOutput:
        self.scheduler.drop(request)
        del self._requests[request.id]
        self.metrics[f"finished_{reason}"] += 1
        if reason == "error":
            request.error = DachengError(
                "the model gave no distribution: its output is not finite",
                field="request",
                value=request.id,
                remedy="check the weights for NaN and, in a narrow dtype, for overflow",
            )
        output = StepOutput(request.id) if output is None else output
        output.text += request.finish(reason)
        output.finish_reason = reason
        return output

    def _check(self, request: Request) -> None:
        if request.status is not Status.NEW:
            raise UsageError(
                "a request is added once", field="status", value=request.status.value, remedy="make a new Request"
            )
        check_params(request.params, self.vocab_size)
        self.scheduler.check(request)
        for token in (min(request.prompt_token_ids), max(request.prompt_token_ids)):
            if not 0 <= token < self.model.traits.vocab_size:
                raise DachengError(
                    "a token id is outside the model's vocabulary",
                    field="prompt_token_ids",
                    value=token,
                    remedy=f"use the model's own tokenizer: ids below {self.model.traits.vocab_size}",
                )
        if request.params.stop and self.tokenizer is None:
            raise UsageError(
                "stop strings need a tokenizer", field="stop", value=request.params.stop, remedy="use stop_token_ids"
            )

    def _prepare(self, request: Request) -> None:
        params = request.params
        request.end_ids = frozenset(params.stop_token_ids)
        if self.tokenizer is not None:
            request.text = OutputText(self.tokenizer.stream_decoder(), params.stop, request.prompt_token_ids)
            if not params.ignore_eos:
                request.end_ids |= {self.tokenizer.eos_id}
        drawn = int(torch.randint(2**63 - 1, (), generator=self._seeds))  # drawn always: a seed of one moves no other
        seed = drawn if params.seed is None else params.seed
        request.sampler = SamplerState(params, seed, self.vocab_size, request.prompt_token_ids)

    def _encode(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt. A text begins as texts of the family do; ids are taken as they are."""
        return encode_prompt(self._tokenizer_for("text"), prompt) if isinstance(prompt, str) else list(prompt)

    def _tokenizer_for(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise UsageError(f"{what} needs a tokenizer", field="tokenizer", value=None, remedy="give the engine one")
        return self.tokenizer

    # The faces of dacheng.protocols.LanguageModel

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Completion]:
        """One completion per prompt, in order. A prompt is text or token ids; params: one for all, or one each.

        Raises as `add` does, and DachengError when the model breaks (NaN); then nothing of this call stays behind.
        """
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        if isinstance(prompts, str) or len(params) != len(prompts):
            raise UsageError(
                "prompts and params must be sequences of one length",
                field="params",
                value=len(params),
                remedy=f"give one SamplingParams, or {len(prompts)}",
            )
        requests = [Request(self._encode(prompt), own) for prompt, own in zip(prompts, params)]
        self._run(requests)
        return [request.completion() for request in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[str, None, Completion]:
        """Pieces of text as they may be shown; together they are the text that `generate` returns. The generator's
        return value is the Completion. Closing it cancels the request; other requests go on in its steps."""
        request = Request(self._encode(prompt), params or SamplingParams())
        self._check(request)  # now, not when the first piece is asked for
        self._tokenizer_for("streaming text")
        return self._stream(request)

    def _stream(self, request: Request) -> Generator[str, None, Completion]:
        shown = 0
        self.add(request)
        try:
            while True:
                assert request.text is not None
                while shown < len(request.text.pieces):  # others may step the engine while this one is suspended
                    shown += 1
                    yield request.text.pieces[shown - 1]
                if request.error is not None:
                    raise request.error
                if request.finished:
                    return request.completion()
                self.step()
        finally:
            self.cancel(request.id)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the sum of the continuation's log-probabilities in nats, and whether greedy
        decoding would produce it. Where one ends and the other begins: boundary.encode_pair; how often tokens crossed
        is counted in metrics (boundary_exact, boundary_moved, boundary_split).

        Raises DachengError when a pair does not fit the context: nothing is truncated.
        """
        tokenizer = self._tokenizer_for("loglikelihood")
        encoded = [encode_pair(tokenizer, context, continuation) for context, continuation in pairs]
        self.metrics.update(f"boundary_{pair.how}" for pair in encoded)
        requests = [Scoring(pair.token_ids, score_from=pair.score_from) for pair in encoded]
        self._run(requests)
        return [(request.nats, request.greedy) for request in requests]

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector (D,) per text, of length 1: the mean of its last hidden states.

        Raises DachengError when a text does not fit the context: nothing is truncated.
        """
        requests = [Embedding(self._encode(text)) for text in texts]
        self._run(requests)
        return [request.vector() for request in requests]

    def _run(self, requests: Iterable[Request]) -> None:
        """Adds the requests and steps until all are finished. An error or an interrupt takes them out again."""
        requests = list(requests)
        try:
            for request in requests:
                self.add(request)
            for request in requests:
                while not request.finished:
                    self.step()
                if request.error is not None:
                    raise request.error
        finally:
            for request in requests:
                self.cancel(request.id)
