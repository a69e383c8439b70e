"""A request: the tokens it knows, how many of them the model has computed, and what has come of it."""

from __future__ import annotations

import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from dacheng.engine.blocks import extend_keys
from dacheng.errors import DachengError
from dacheng.protocols import Completion, SamplingParams, TopLogprobs

if TYPE_CHECKING:
    from torch import Tensor

    from dacheng.engine.state import SamplerState
    from dacheng.engine.stops import OutputText


class Status(Enum):
    NEW = "new"  # not yet given to an engine
    WAITING = "waiting"  # queued, holds no cache
    RUNNING = "running"  # holds a slot of the cache
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """One prompt (token ids, at least one) to be continued as `params` say.

    `known` starts as the prompt and grows by each sampled token; `computed` counts the leading known tokens whose keys
    and values are in the cache. A step brings `computed` towards `known`; when it arrives, the next token is sampled.
    That one rule is prefill, chunked prefill and decode (vLLM v1).

    Set the first five fields; the rest belongs to the engine. deadline: of time.monotonic(), in seconds; at the first
    step after it the request ends. salt: texts with different ones share no cache (one a tenant).
    adapter: of the engine's bank, by name; "" is the base.
    finish_reason: "stop" | "length" | "cancelled" | "deadline" | "error".
    """

    prompt_token_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    deadline: float | None = field(default=None, kw_only=True)
    salt: str = field(default="", kw_only=True)
    adapter: str = field(default="", kw_only=True)

    id: int = field(default=-1, init=False)
    status: Status = field(default=Status.NEW, init=False)
    slot: int = field(default=-1, init=False)
    known: list[int] = field(default_factory=list, init=False)
    computed: int = field(default=0, init=False)
    finish_reason: str | None = field(default=None, init=False)
    error: DachengError | None = field(default=None, init=False)  # of a request that finished with "error"
    text: OutputText | None = field(default=None, init=False)  # None without a tokenizer
    sampler: SamplerState | None = field(default=None, init=False)
    end_ids: frozenset[int] = field(default=frozenset(), init=False)  # ids that end the text: EOS and stop_token_ids
    logprobs: list[float] = field(default_factory=list, init=False)
    top_logprobs: list[TopLogprobs] = field(default_factory=list, init=False)
    prompt_logprobs: list[TopLogprobs | None] | None = field(default=None, init=False)
    cached_tokens: int = field(default=0, init=False)  # of the prompt, found in the cache when it was first admitted
    preemptions: int = field(default=0, init=False)
    drafts: list[int] = field(default_factory=list, init=False)  # guesses of what comes after `known`
    proposals: list[Tensor] = field(default_factory=list, init=False)  # (V,): what each was drawn from; [] where not
    sound: bool = field(default=False, init=False)  # finite numbers came of all that is computed
    key_root: bytes = field(default=b"", init=False)
    adapter_number: int = field(default=0, init=False)  # held in the bank from `add` to the end
    _keys: list[bytes] = field(default_factory=list, init=False)
    near_ties: int = field(default=0, init=False)
    added_at: float = field(default=0.0, init=False)
    first_token_at: float | None = field(default=None, init=False)
    finished_at: float | None = field(default=None, init=False)

    room: ClassVar[int] = 1  # positions that it needs beyond those of the prompt to mean anything
    wants_hidden: ClassVar[bool] = False  # whether the executor must sum its hidden states

    def __post_init__(self) -> None:
        self.prompt_token_ids = list(map(operator.index, self.prompt_token_ids))  # no text, and no 1.5 made a 1
        self.known = list(self.prompt_token_ids)

    @property
    def pending(self) -> int:
        """Known tokens that are not yet computed, and guesses that a step could check."""
        return len(self.known) + len(self.drafts) - self.computed

    @property
    def token_ids(self) -> list[int]:
        """Generated ids, the one that ended the text included."""
        return self.known[len(self.prompt_token_ids) :]

    @property
    def tokens_left(self) -> int:
        """How many tokens it may generate yet."""
        return self.params.max_tokens - len(self.known) + len(self.prompt_token_ids)

    @property
    def drafts_allowed(self) -> bool:
        """Guesses are made of what follows a text that is computed but for its last token."""
        return len(self.prompt_token_ids) < len(self.known) == self.computed + 1

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether logits of the prompt are still to be read."""
        return self.params.prompt_logprobs is not None and len(self.known) == len(self.prompt_token_ids)

    @property
    def skippable(self) -> int:
        """How many leading tokens need not be computed where their keys and values are there. Of the last one, the
        logits are always needed."""
        return 0 if self.wants_prompt_logprobs else len(self.known) - 1

    def keys(self) -> list[bytes]:
        """Of the whole blocks of what is known (see blocks.extend_keys)."""
        extend_keys(self._keys, self.key_root, self.known)
        return self._keys

    def logit_rows(self, start: int, stop: int) -> range:
        """Of the positions start..stop-1 computed in a step, those whose logits are needed: the last known one, all
        guessed ones, and those of the prompt where its log-probabilities are asked for."""
        if self.wants_prompt_logprobs:
            return range(start, stop)
        last = len(self.known) - 1
        return range(last, stop) if stop > last else range(0)

    def restart(self) -> None:
        """Nothing is computed any more: known tokens stay known, and their keys and values are made again."""
        self.computed, self.sound, self.drafts, self.proposals = 0, False, [], []
        if self.wants_prompt_logprobs:
            self.prompt_logprobs = None

    def finish(self, reason: str) -> str:
        """Marks the request finished and returns the text that was held back (see OutputText)."""
        self.status, self.finish_reason, self.finished_at = Status.FINISHED, reason, time.perf_counter()
        return "" if self.text is None else self.text.finish()

    def completion(self) -> Completion:
        """What there is so far. metrics: near_ties (greedy choices within 1e-4 of the runner-up's logit), cached_tokens
        (of the prompt, not computed again), time_to_first_token_s and total_s, from the moment it was added."""
        metrics = {"near_ties": float(self.near_ties), "cached_tokens": float(self.cached_tokens)}
        if self.first_token_at is not None:
            metrics["time_to_first_token_s"] = self.first_token_at - self.added_at
        if self.finished_at is not None:
            metrics["total_s"] = self.finished_at - self.added_at
        return Completion(
            prompt_token_ids=list(self.prompt_token_ids),
            token_ids=self.token_ids,
            text="" if self.text is None else self.text.text,
            finish_reason=self.finish_reason,
            logprobs=list(self.logprobs) if self.params.logprobs else None,
            metrics=metrics,
            top_logprobs=list(self.top_logprobs) if self.params.top_logprobs else None,
            prompt_logprobs=self.prompt_logprobs,
        )
