"""A request: the tokens it knows, how many of them the model has computed, and what has come of it."""

from __future__ import annotations

import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from dacheng.errors import DachengError
from dacheng.protocols import Completion, SamplingParams

if TYPE_CHECKING:
    from dacheng.engine.sampler import SamplerState
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

    Set the first two fields; the rest belongs to the engine. finish_reason: "stop" | "length" | "cancelled" | "error".
    """

    prompt_token_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)

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
        """Known tokens that are not yet computed."""
        return len(self.known) - self.computed

    @property
    def token_ids(self) -> list[int]:
        """Generated ids, the one that ended the text included."""
        return self.known[len(self.prompt_token_ids) :]

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED

    def logit_rows(self, start: int, stop: int) -> range:
        """Of the positions start..stop-1 computed in a step, those whose logits are needed: the last known one."""
        last = len(self.known) - 1
        return range(last, last + 1) if stop > last else range(0)

    def restart(self) -> None:
        """Nothing is computed any more: known tokens stay known, and their keys and values are made again."""
        self.computed = 0

    def finish(self, reason: str) -> str:
        """Marks the request finished and returns the text that was held back (see OutputText)."""
        self.status, self.finish_reason, self.finished_at = Status.FINISHED, reason, time.perf_counter()
        return "" if self.text is None else self.text.finish()

    def completion(self) -> Completion:
        """What there is so far. metrics: near_ties (greedy choices within 1e-4 of the runner-up's logit),
        time_to_first_token_s and total_s, from the moment it was added."""
        metrics = {"near_ties": float(self.near_ties)}
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
        )
