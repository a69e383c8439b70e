"""Events gathered into answers, and answers sent as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

from dacheng.serve.api_error import to_json
from dacheng.serve.chat import Event, Finished, TextDelta, ToolCall
from dacheng.serve.token_text import TokenLogprob

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Answer:
    """All of one sample."""

    index: int
    text: str = ""
    thought: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: str = "stop"
    stop: str | None = None


def collected(events: Sequence[Event], n: int) -> list[Answer]:
    answers = [Answer(index) for index in range(n)]
    for event in events:
        if isinstance(event, TextDelta):
            answer = answers[event.index]
            answer.logprobs += event.logprobs
            if event.thought:
                answer.thought += event.text
            else:
                answer.text += event.text
        elif isinstance(event, ToolCall):
            answers[event.index].calls.append(event)
        elif isinstance(event, Finished):
            answers[event.index].reason, answers[event.index].stop = event.reason, event.stop
    return answers


async def sse(parts: AsyncIterator[dict[str, Any]], *, done: bool = False) -> AsyncGenerator[bytes, None]:
    """Each part as one event. A part with "type" and `named` is sent under that name. done: [DONE] at the end."""
    async with aclosing(cast(AsyncGenerator, parts)):
        async for part in parts:
            yield b"data: " + to_json(part) + b"\n\n"
        if done:
            yield DONE


async def named_sse(parts: AsyncIterator[dict[str, Any]]) -> AsyncGenerator[bytes, None]:
    """Each part as an event of the name that its "type" says."""
    async with aclosing(cast(AsyncGenerator, parts)):
        async for part in parts:
            yield b"event: " + part["type"].encode() + b"\ndata: " + to_json(part) + b"\n\n"
