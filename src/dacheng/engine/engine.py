"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import time
from collections import Counter
from functools import cached_property
from typing import cast

import torch

from dacheng.adapt.bank import AdapterBank
from dacheng.engine.adapters import check_adapter, hold_adapter, let_go
from dacheng.engine.admission import check_tokens, longest_context
from dacheng.engine.blocks import root_key
from dacheng.engine.capacity import make_caches
from dacheng.engine.draft import DraftModel, check_draft
from dacheng.engine.executor import Executor, StepResult
from dacheng.engine.executors import chosen_executor, fastest
from dacheng.engine.faces import Faces, Tokenizer
from dacheng.engine.figures import stats_of
from dacheng.engine.grammar import GrammarCompiler, Vocabulary
from dacheng.engine.output import StepOutput
from dacheng.engine.params import check_params
from dacheng.engine.readings import Reading
from dacheng.engine.request import Request, Status
from dacheng.engine.sampler import Choice, SamplerState, prompt_logprobs, sample, sample_each
from dacheng.engine.scheduler import Scheduler
from dacheng.engine.speculation import Speculation
from dacheng.engine.step_plan import Chunk, StepPlan
from dacheng.engine.stops import OutputText
from dacheng.errors import DachengError, UsageError
from dacheng.models.decoder import Decoder

__all__ = ["Engine", "StepOutput", "Tokenizer"]


class Engine(Faces):
    """Continuous batching over one model (a dacheng.protocols.LanguageModel).

    model: a decoder with traits, cache_spec() and head(). tokenizer: None for work on token ids alone. max_batch:
    requests that run together. max_tokens_per_step: the budget of a step, so the longest a running request waits for a
    prompt of another. max_context: tokens of one request, prompt included; the model's own by default. cache_tokens or
    cache_bytes: how many tokens' keys and values are kept, of all requests together; by default what max_batch requests
    of max_context need, but no more than a share of the memory that is free (see capacity.py). prefix_cache: whether a
    text that begins like an earlier one finds that beginning computed. speculate: tokens that are guessed for a request
    in one step, at most, while that pays (see speculation.py); 0 is off. draft: a small model with the same vocabulary
    that guesses them, in place of looking them up in the text. kv_dtype: how keys and values are kept ("float32",
    "bfloat16", "int8"); as the weights by default. deterministic: greedy texts, and those of a seed, are the same to
    the bit of each log-probability whatever else runs, slower (see deterministic.py). adapters: what a Request.adapter
    may name. seed: of the seeds of requests that bring none.

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
        cache_tokens: int | None = None,
        cache_bytes: int | None = None,
        prefix_cache: bool = True,
        speculate: int = 0,
        draft: Decoder | None = None,
        kv_dtype: torch.dtype | str | None = None,
        deterministic: bool = False,
        executor: Executor | None = None,
        adapters: AdapterBank | None = None,
        seed: int = 0,
    ) -> None:
        """Raises UsageError when the limits contradict each other or the model."""
        traits = model.traits
        self.max_context = longest_context(traits, max_context)
        self.model, self.tokenizer, self.prefix_cache = model, tokenizer, prefix_cache
        # Rows past the tokenizer's vocabulary (padding of the matrix) mean nothing and are never sampled.
        self.vocab_size = traits.vocab_size if tokenizer is None else min(traits.vocab_size, tokenizer.vocab_size)
        self.deterministic, self.adapters = deterministic, adapters
        if draft is not None:
            check_draft(draft, model, speculate)
        self.cache, *others = make_caches(
            [model] if draft is None else [model, draft], kv_dtype=kv_dtype, max_batch=max_batch,
            max_context=self.max_context, max_step=max_tokens_per_step, tokens=cache_tokens, bytes_=cache_bytes,
        )  # fmt: skip
        self.executor = chosen_executor(model, executor, self.cache, deterministic, adapters)
        self.scheduler = Scheduler(
            self.cache, max_batch=max_batch, max_tokens_per_step=max_tokens_per_step, max_context=self.max_context
        )
        self.speculation = Speculation(speculate)
        if draft is not None:
            self.speculation.drafter = DraftModel(
                draft, others[0], fastest(draft, others[0]), vocab_size=self.vocab_size, seed=seed,
                draws=not deterministic,
            )  # fmt: skip
        self._sample = sample_each if deterministic else sample
        self.metrics: Counter[str] = Counter()
        self.weights_version = 0
        self._requests: dict[int, Request] = {}  # those that are not finished
        self._added = 0
        self._seeds = torch.Generator().manual_seed(seed)

    def add(self, request: Request) -> int:
        """Queues a request and returns its id.

        Raises DachengError for a prompt that can never fit or has ids outside the vocabulary, UsageError for sampling
        parameters out of range; the engine is then as it was.
        """
        self.check(request)
        if not isinstance(request, Reading):
            self._prepare(request)
        hold_adapter(self.adapters, request)
        request.id, request.added_at = self._added, time.perf_counter()
        # Without a prefix cache each request is a tenant of its own.
        salt = request.salt if self.prefix_cache else f"{request.id}"
        request.key_root = root_key(salt, str(request.adapter_number), str(self.weights_version))
        self._added += 1
        self._requests[request.id] = request
        self.scheduler.add(request)
        return request.id

    def cancel(self, request_id: int) -> bool:
        """Ends a request, waiting or running, and frees its blocks. False when it is not there (any more)."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._finish(request, "cancelled")
        return True

    def end(self, reason: str, error: DachengError | None = None, *, running: bool = False) -> list[StepOutput]:
        """Ends every request, or all that are running: "cancelled", or "error" where steps keep raising."""
        ended = self.scheduler.running if running else self._requests.values()
        return [self._finish(request, reason, error=error) for request in list(ended)]

    def weights_changed(self) -> None:
        """What was computed with the weights as they were is found by no request that is added from now on."""
        self.weights_version += 1
        self.cache.forget_prefixes()

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def step(self) -> list[StepOutput]:
        """One forward, in which every request that has its turn comes nearer to its next token.

        A request for which the model gives no distribution (a NaN) is finished with reason "error"; it is the only one
        that suffers. When the executor raises, nothing has happened: the next step tries again.
        """
        outputs = self._expire()
        scheduler = self.scheduler
        self.speculation.propose(scheduler.running, scheduler.max_tokens_per_step, scheduler.prompts_due)
        plan = self.scheduler.schedule()
        if not plan:
            return outputs
        started = time.perf_counter()
        result = self.executor.run(plan, self.cache)
        seconds = time.perf_counter() - started
        self.metrics.update({"steps": 1, "tokens_computed": plan.tokens, "run_s": seconds})
        self.scheduler.commit(plan)
        outputs += self._read(plan, result)
        written = self._write(plan, result)
        if plan.decodes and written:
            self.speculation.note(seconds, len(written), sum(len(o.token_ids) for o in written), plan.drafted > 0)
        return outputs + written

    def _expire(self) -> list[StepOutput]:
        now = time.monotonic()
        late = [r for r in self._requests.values() if r.deadline is not None and r.deadline <= now]
        return [self._finish(request, "deadline") for request in late]

    def _read(self, plan: StepPlan, result: StepResult) -> list[StepOutput]:
        """Hands what was computed to those that only read."""
        outputs = []
        for chunk, rows in plan.rows():
            request = chunk.request
            if isinstance(request, Reading):
                sound = request.read(chunk.logit_rows, result.logits[rows], result.hidden_sums.get(request.id))
                request.sound = sound
                if not sound or not request.pending:
                    self.metrics["prompt_tokens"] += len(request.prompt_token_ids)
                    outputs.append(self._finish(request, "stop" if sound else "error"))
        return outputs

    def _write(self, plan: StepPlan, result: StepResult) -> list[StepOutput]:
        """The next token of each generating request that asked for logits, in plan order, and, while a token is the one
        that was guessed, the one after it."""
        asked: list[tuple[Chunk, int]] = []  # and the row of its last known token
        for chunk, rows in plan.rows():
            request = chunk.request
            if isinstance(request, Reading) or not chunk.logit_rows:
                continue
            if request.wants_prompt_logprobs:
                self._read_prompt(request, chunk, result.logits[rows, : self.vocab_size])
            if chunk.stop >= len(request.known):
                asked.append((chunk, rows.start + len(request.known) - 1 - chunk.logit_rows.start))
        outputs: dict[int, StepOutput] = {}
        live, depth = asked, 0
        while live:
            logits = result.logits[:, : self.vocab_size]
            if [row + depth for _, row in live] != list(range(len(logits))):
                logits = logits[[row + depth for _, row in live]]
            states = [chunk.request.sampler for chunk, _ in live if chunk.request.sampler is not None]
            choices = self._sample(logits, states, [chunk.proposal(depth) for chunk, _ in live])
            going_on = []
            for (chunk, row), choice in zip(live, choices):
                request = chunk.request
                output = outputs.setdefault(request.id, StepOutput(request.id))
                refusal = request.sampler.refusal if request.sampler is not None else None
                if choice is None or refusal is not None:
                    self._finish(request, "error", output, refusal)
                elif self._advance(request, choice, output) and chunk.drafts[depth : depth + 1] == (choice.token_id,):
                    request.computed += 1  # its keys and values are in the cache already
                    going_on.append((chunk, row))
            live, depth = going_on, depth + 1
        for chunk, _ in asked:
            drafted, accepted = len(chunk.drafts), max(0, len(outputs[chunk.request.id].token_ids) - 1)
            self.metrics.update({"tokens_drafted": drafted, "tokens_accepted": accepted})
            self.speculation.learn(chunk.request, drafted, accepted)
        return list(outputs.values())

    def _read_prompt(self, request: Request, chunk: Chunk, logits_RV: torch.Tensor) -> None:
        assert request.params.prompt_logprobs is not None
        if request.prompt_logprobs is None:
            request.prompt_logprobs = [None]
        targets = request.prompt_token_ids[chunk.start + 1 : chunk.stop + 1]
        size = 1 if self.deterministic else max(1, len(targets))  # a sum over many rows may go another way
        for i in range(0, len(targets), size):
            rows, own = logits_RV[i : i + size], targets[i : i + size]
            request.prompt_logprobs += prompt_logprobs(rows[: len(own)], own, request.params.prompt_logprobs)

    def _advance(self, request: Request, choice: Choice, output: StepOutput) -> bool:
        """Gives a request its next token, and ends it when that was the last: then False."""
        token, params = choice.token_id, request.params
        if request.first_token_at is None:
            request.first_token_at = time.perf_counter()
            output.prompt_logprobs, output.cached_tokens = request.prompt_logprobs, request.cached_tokens
            self.metrics["prompt_tokens"] += len(request.prompt_token_ids)
        request.known.append(token)
        request.sound = True
        request.near_ties += choice.near_tie
        self.metrics.update({"tokens_generated": 1, "near_ties": choice.near_tie})
        assert request.sampler is not None
        request.sampler.note(token)
        output.token_ids.append(token)
        if choice.logprob is not None:
            request.logprobs.append(choice.logprob)
            output.logprobs = [*(output.logprobs or []), choice.logprob]
        if choice.top_logprobs is not None:
            request.top_logprobs.append(choice.top_logprobs)
            output.top_logprobs = [*(output.top_logprobs or []), choice.top_logprobs]
        ended = token in request.end_ids
        if request.text is not None and not ended:
            output.text += request.text.push(token, may_stop=len(request.token_ids) >= params.min_tokens)
            ended = request.text.stopped
        if ended or request.sampler.is_done:
            self._finish(request, "stop", output)
        elif request.tokens_left <= 0 or len(request.known) >= self.scheduler.longest:
            self._finish(request, "length", output)
        return not request.finished

    def _finish(
        self, request: Request, reason: str, output: StepOutput | None = None, error: DachengError | None = None
    ) -> StepOutput:
        self.scheduler.drop(request)
        self.speculation.forget(request)
        del self._requests[request.id]
        let_go(self.adapters, request)
        self.metrics[f"finished_{reason}"] += 1
        output = StepOutput(request.id) if output is None else output
        if reason == "error":
            request.error = output.error = error or DachengError(
                "the model gave no distribution: its output is not finite",
                field="request",
                value=request.id,
                remedy="check the weights for NaN and, in a narrow dtype, for overflow",
            )
        output.text += request.finish(reason)
        output.finish_reason = reason
        return output

    def check(self, request: Request) -> None:
        """Raises what `add` would."""
        if request.status is not Status.NEW:
            raise UsageError(
                "a request is added once", field="status", value=request.status.value, remedy="make a new Request"
            )
        check_params(request.params, self.vocab_size)
        if request.params.grammar is not None:
            self.grammars.matcher(request.params.grammar)  # kept: the second time it costs nothing
        self.scheduler.check(request)
        check_adapter(self.adapters, request.adapter)
        check_tokens(request, self.model.traits.vocab_size, self.tokenizer)

    def _prepare(self, request: Request) -> None:
        params = request.params
        request.end_ids = frozenset(params.stop_token_ids)
        if self.tokenizer is not None:
            request.text = OutputText(self.tokenizer.stream_decoder(), params.stop, request.prompt_token_ids)
            if not params.ignore_eos:
                request.end_ids |= {self.tokenizer.eos_id}
        drawn = int(torch.randint(2**63 - 1, (), generator=self._seeds))  # drawn always: a seed of one moves no other
        seed = drawn if params.seed is None else params.seed
        matcher = None if params.grammar is None else self.grammars.matcher(params.grammar)
        request.sampler = SamplerState(
            params, seed, self.vocab_size, request.prompt_token_ids, request.end_ids, matcher
        )

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Raises UsageError without a tokenizer, MissingExtra without llguidance."""
        if self.tokenizer is None:
            raise UsageError("grammars need a tokenizer", field="grammar", value=None, remedy="give the engine one")
        return GrammarCompiler(cast(Vocabulary, self.tokenizer))

    def stats(self) -> dict[str, float]:
        """Counts and gauges by vLLM's names."""
        return stats_of(self)
