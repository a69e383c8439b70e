"""/v1/responses: OpenAI's newer API over the same chat events. Nothing is stored."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from dacheng.serve.chat import Event, Finished, Started, TextDelta, ToolCall, chat_events
from dacheng.serve.exchange import Exchange
from dacheng.serve.openai_chat import Usage
from dacheng.serve.responses_request import ResponseRequest, read_response_request
from dacheng.serve.streams import named_sse


async def create_response(exchange: Exchange) -> Any:
    body = exchange.body
    model = exchange.find_model(required=False)
    stream = body.flag("stream")
    request = read_response_request(body, model, exchange.limits)
    body.done()
    most, deadline = exchange.limits.max_tokens, exchange.limits.deadline_s
    events = exchange.owned(
        chat_events(model, request.chat, exchange.meter, most_tokens=most, deadline_s=deadline, salt=exchange.salt())
    )
    parts = response_events(events, _head(exchange.model_name, request))
    if stream:
        return await exchange.stream(named_sse(parts))
    return await exchange.answer(_last(parts))


async def _last(parts: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """What the last event of the stream carries: the whole response."""
    response: dict[str, Any] = {}
    async for part in parts:
        response = part.get("response", response)
    return response


def _head(model_name: str, request: ResponseRequest) -> dict[str, Any]:
    return {
        "id": f"resp_{secrets.token_hex(16)}", "object": "response", "created_at": int(time.time()),
        "status": "in_progress", "background": False, "error": None, "incomplete_details": None, "model": model_name,
        "output": [], "previous_response_id": None, "store": False,
        "truncation": "disabled", "usage": None,
    } | request.echo  # fmt: skip


class _Stream:
    """Numbers the events and keeps the output items."""

    def __init__(self, head: dict[str, Any]) -> None:
        self.head, self.items = head, list[dict[str, Any]]()
        self._number = -1

    def event(self, kind: str, **values: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number} | values

    @property
    def place(self) -> int:
        """Of the item that is being written."""
        return len(self.items) - 1

    def open_text(self, thought: bool) -> list[dict[str, Any]]:
        made = secrets.token_hex(16)
        if thought:
            item = {"type": "reasoning", "id": f"rs_{made}", "summary": [], "content": [], "status": "in_progress"}
        else:
            item = {
                "type": "message", "id": f"msg_{made}", "role": "assistant", "status": "in_progress", "content": [],
            }  # fmt: skip
        self.items.append(item)
        part = {"type": "reasoning_text", "text": ""} if thought else _part("")
        return [
            self.event("response.output_item.added", output_index=self.place, item=dict(item)),
            self.event("response.content_part.added", **self._where(), part=part),
        ]

    def _where(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": self.place, "content_index": 0}

    def delta(self, text: str, thought: bool) -> dict[str, Any]:
        if thought:
            return self.event("response.reasoning_text.delta", **self._where(), delta=text)
        return self.event("response.output_text.delta", **self._where(), delta=text, logprobs=[])

    def close_text(self, text: str, thought: bool, status: str) -> list[dict[str, Any]]:
        part = {"type": "reasoning_text", "text": text} if thought else _part(text)
        kind = "reasoning_text" if thought else "output_text"
        extra: dict[str, Any] = {} if thought else {"logprobs": []}
        done = self.event(f"response.{kind}.done", **self._where(), text=text, **extra)
        part_done = self.event("response.content_part.done", **self._where(), part=part)
        self.items[-1] |= {"content": [part], "status": status}
        item_done = self.event("response.output_item.done", output_index=self.place, item=self.items[-1])
        return [done, part_done, item_done]

    def call(self, call: ToolCall) -> list[dict[str, Any]]:
        item = {
            "type": "function_call", "id": f"fc_{secrets.token_hex(16)}", "call_id": call.id, "name": call.name,
            "arguments": call.arguments, "status": "completed",
        }  # fmt: skip
        self.items.append(item)
        where = {"item_id": item["id"], "output_index": self.place}
        begun = item | {"arguments": "", "status": "in_progress"}
        return [
            self.event("response.output_item.added", output_index=self.place, item=begun),
            self.event("response.function_call_arguments.delta", **where, delta=call.arguments),
            self.event("response.function_call_arguments.done", **where, arguments=call.arguments, name=call.name),
            self.event("response.output_item.done", output_index=self.place, item=item),
        ]


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def response_events(events: AsyncIterator[Event], head: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """response.created to response.completed (or response.incomplete, at max_output_tokens)."""
    stream, usage = _Stream(head), Usage()
    text, thought, is_open = "", False, False
    async for event in events:
        usage.note(event)
        if isinstance(event, Started):
            yield stream.event("response.created", response=head)
            yield stream.event("response.in_progress", response=head)
            continue
        ends = not isinstance(event, TextDelta) or event.thought != thought
        if is_open and ends:
            incomplete = isinstance(event, Finished) and event.reason == "length"
            for part in stream.close_text(text, thought, "incomplete" if incomplete else "completed"):
                yield part
            is_open = False
        if isinstance(event, TextDelta) and event.text:
            if not is_open:
                text, thought, is_open = "", event.thought, True
                for part in stream.open_text(thought):
                    yield part
            text += event.text
            yield stream.delta(event.text, thought)
        elif isinstance(event, ToolCall):
            for part in stream.call(event):
                yield part
        elif isinstance(event, Finished):
            yield _end(stream, usage, event)


def _end(stream: _Stream, usage: Usage, event: Finished) -> dict[str, Any]:
    cut = event.reason == "length"
    ended = {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": stream.items,
        "usage": {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": usage.thought},
            "total_tokens": usage.prompt + usage.completion,
        },
    }  # fmt: skip
    return stream.event("response.incomplete" if cut else "response.completed", response=stream.head | ended)
