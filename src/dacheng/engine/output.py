"""What one step added to one request."""

from __future__ import annotations

from dataclasses import dataclass, field

from dacheng.errors import DachengError
from dacheng.protocols import TopLogprobs


@dataclass(slots=True)
class StepOutput:
    """`text` is what may be shown now; it can lag behind the tokens. A step may bring several tokens (speculation).

    logprobs: of the tokens; top_logprobs: of the best ones beside each. The first output of a request also has
    prompt_logprobs (see protocols.Completion) and cached_tokens: how many of the prompt were found in the cache.
    error: why, where finish_reason is "error".
    """

    request_id: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] | None = None
    finish_reason: str | None = None
    top_logprobs: list[TopLogprobs] | None = None
    prompt_logprobs: list[TopLogprobs | None] | None = None
    cached_tokens: int = 0
    error: DachengError | None = None
