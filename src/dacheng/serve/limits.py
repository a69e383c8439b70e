"""What one request may ask for at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """body_bytes, body_s: size of a request's body, and seconds in which it has to arrive. deadline_s: seconds from the
    request to the end of its answer. send_s: seconds that a client may leave a piece of the answer unread. header_s:
    seconds in which the head of a request has to arrive. The rest counts things; the model's context bounds prompts."""

    body_bytes: int = 4 << 20
    body_s: float = 30.0
    header_s: float = 15.0
    send_s: float = 60.0
    deadline_s: float = 600.0
    max_tokens: int = 1 << 16
    n: int = 16
    prompts: int = 256
    inputs: int = 2048
    messages: int = 4096
    tools: int = 128
    stops: int = 16
    stop_chars: int = 256
    top_logprobs: int = 20
    logit_bias: int = 1024
