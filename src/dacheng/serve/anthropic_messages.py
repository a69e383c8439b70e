"""/v1/messages and /v1/messages/count_tokens: Anthropic's API over the same chat events."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from dacheng.serve.anthropic_request import read_anthropic
from dacheng.serve.chat import Event, Finished, Started, TextDelta, ToolCall, chat_events, render
from dacheng.serve.exchange import Exchange
from dacheng.serve.openai_chat import Usage
from dacheng.serve.streams import Answer, collected, named_sse

_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


async def messages(exchange: Exchange) -> Any:
    body = exchange.body
    model = exchange.find_model()
    stream = body.flag("stream")
    request = read_anthropic(body, model, exchange.limits)
    body.done()
    most, deadline = exchange.limits.max_tokens, exchange.limits.deadline_s
    events = exchange.owned(
        chat_events(model, request, exchange.meter, most_tokens=most, deadline_s=deadline, salt=exchange.salt())
    )
    head = {
        "id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": exchange.model_name,
    }  # fmt: skip
    if stream:
        return await exchange.stream(named_sse(_events(events, head)))
    return await exchange.answer(_message(events, head))


async def count_tokens(exchange: Exchange) -> Any:
    model = exchange.find_model()
    request = read_anthropic(exchange.body, model, exchange.limits, counting=True)
    exchange.body.done()
    ids, _ = await render(model, request)
    return {"input_tokens": len(ids)}


async def _message(events: AsyncIterator[Event], head: dict[str, Any]) -> dict[str, Any]:
    everything = [event async for event in events]
    usage = Usage()
    for event in everything:
        usage.note(event)
    (answer,) = collected(everything, 1)
    return head | {"content": _blocks(answer)} | stop_of(answer.reason, answer.stop) | {"usage": usage_of(usage)}


def _blocks(answer: Answer) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if answer.thought:
        blocks.append({"type": "thinking", "thinking": answer.thought, "signature": ""})
    if answer.text:
        blocks.append({"type": "text", "text": answer.text})
    for call in answer.calls:
        blocks.append(_tool_use(call) | {"input": json.loads(call.arguments)})
    return blocks


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id.replace("call_", "toolu_"), "name": call.name, "input": {}}


def stop_of(reason: str, stop: str | None) -> dict[str, Any]:
    if reason == "stop":
        return {"stop_reason": "end_turn" if stop is None else "stop_sequence", "stop_sequence": stop}
    return {"stop_reason": _REASONS[reason], "stop_sequence": None}


def usage_of(usage: Usage) -> dict[str, int]:
    """input_tokens are those that were not cached, as Anthropic counts."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }


async def _events(events: AsyncIterator[Event], head: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """message_start, then for each block its start, deltas and stop, message_delta and message_stop."""
    usage, index, open_kind = Usage(), -1, None
    async for event in events:
        usage.note(event)
        if isinstance(event, Started):
            start = head | {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage_of(usage)}
            yield {"type": "message_start", "message": start}
            yield {"type": "ping"}
        elif isinstance(event, TextDelta) and event.text:
            kind = "thinking" if event.thought else "text"
            if open_kind != kind:
                if open_kind is not None:
                    yield {"type": "content_block_stop", "index": index}
                index, open_kind = index + 1, kind
                block = {"type": "text", "text": ""}
                if event.thought:
                    block = {"type": "thinking", "thinking": "", "signature": ""}
                yield {"type": "content_block_start", "index": index, "content_block": block}
            delta = {"type": f"{kind}_delta", kind: event.text}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        elif isinstance(event, ToolCall):
            if open_kind is not None:
                yield {"type": "content_block_stop", "index": index}
            index, open_kind = index + 1, None
            yield {"type": "content_block_start", "index": index, "content_block": _tool_use(event)}
            delta = {"type": "input_json_delta", "partial_json": event.arguments}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
            yield {"type": "content_block_stop", "index": index}
        elif isinstance(event, Finished):
            if open_kind is not None:
                yield {"type": "content_block_stop", "index": index}
            delta = stop_of(event.reason, event.stop)
            yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": usage.completion}}
            yield {"type": "message_stop"}
