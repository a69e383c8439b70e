"""/v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from dacheng.serve.api_error import bad_request, unimplemented
from dacheng.serve.chat import ChatRequest, Event, Finished, Started, TextDelta, ToolCall, chat_events
from dacheng.serve.exchange import Exchange
from dacheng.serve.fields import Fields
from dacheng.serve.limits import Limits
from dacheng.serve.messages import read_messages
from dacheng.serve.reasoning import thinking_variables
from dacheng.serve.sampling import read_sampling
from dacheng.serve.served_model import ServedModel
from dacheng.serve.streams import collected, sse
from dacheng.serve.structure import read_structure
from dacheng.serve.token_text import TokenLogprob
from dacheng.serve.tools import read_tool_choice, read_tools


@dataclass(slots=True)
class Head:
    """What every part of one answer repeats."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))


async def chat_completions(exchange: Exchange) -> Any:
    body = exchange.body
    model = exchange.find_model()
    stream = body.flag("stream")
    include_usage = read_stream_options(body, stream)
    request = read_chat_request(body, model, exchange.limits)
    salt = exchange.salt(body.text("cache_salt", "", longest=256))
    body.done()
    head = Head(exchange.model_name)
    deadline = exchange.limits.deadline_s
    most = exchange.limits.max_tokens
    events = exchange.owned(
        chat_events(model, request, exchange.meter, most_tokens=most, deadline_s=deadline, salt=salt)
    )
    if stream:
        return await exchange.stream(sse(chunks(events, head, model, request, include_usage), done=True))
    return await exchange.answer(completion(events, head, model, request))


def read_stream_options(body: Fields, stream: bool) -> bool:
    """Whether usage is asked for at the end of the stream."""
    options = body.object("stream_options")
    if options is None:
        return False
    if not stream:
        raise bad_request("stream_options", "only with stream=true")
    include = options.flag("include_usage")
    options.only("include_obfuscation", False)
    options.only("continuous_usage_stats", False)
    options.done()
    return include


def read_chat_request(body: Fields, model: ServedModel, limits: Limits) -> ChatRequest:
    template = "" if model.renderer is None else model.renderer.template
    messages = read_messages(body, limits, knows_developer="developer" in template)
    tools = read_tools(body, limits)
    rule = read_tool_choice(body, tools)
    structure = read_structure(body)
    refuse_what_is_missing(body)
    thinking = read_effort(body, model)
    variables = body.object("chat_template_kwargs")
    continue_final = body.flag("continue_final_message")
    body.only("add_generation_prompt", not continue_final)
    if continue_final and messages[-1]["role"] != "assistant":
        raise bad_request("continue_final_message", "the last message is not the assistant's")
    return ChatRequest(
        messages=messages,
        tools=tools,
        rule=rule,
        structure=structure,
        n=body.integer("n", 1, low=1, high=limits.n),
        max_tokens=read_max_tokens(body, limits),
        params=read_sampling(body, limits, model.vocab_size) | read_logprobs(body, limits),
        variables=thinking | ({} if variables is None else read_variables(variables)),
        continue_final=continue_final,
    )


def refuse_what_is_missing(body: Fields) -> None:
    """Fields of OpenAI's that are not implemented; those that only describe the request to its sender are taken."""
    for key in ("audio", "function_call", "functions", "prediction", "web_search_options", "moderation"):  # fmt: skip
        body.only(key)
    body.only("verbosity", "medium")
    body.only("store", False)
    body.only("modalities", ["text"])
    body.only("service_tier", "auto", "default")
    for key in ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"):
        body.text(key, longest=512)
    if (metadata := body.object("metadata")) is not None:
        metadata.rest()


def read_effort(body: Fields, model: ServedModel, key: str = "reasoning_effort") -> dict[str, Any]:
    """Variables of the template for it."""
    effort = body.text(key, longest=16)
    template = "" if model.renderer is None else model.renderer.template
    variables = thinking_variables(template, effort, model.reasons)
    if variables is None:
        raise unimplemented(body.path(key), "the chat template of this model knows no such effort; leave it out")
    return variables


def read_variables(variables: Fields) -> dict[str, Any]:
    """What else the template knows. Its own variables cannot be replaced."""
    found = variables.rest()
    for key in found.keys() & {"messages", "tools", "add_generation_prompt", "continue_final_message"}:
        raise bad_request(variables.path(key), "use the field of the request")
    return found


def read_max_tokens(body: Fields, limits: Limits) -> int | None:
    old = body.integer("max_tokens", low=1, high=limits.max_tokens)
    new = body.integer("max_completion_tokens", low=1, high=limits.max_tokens)
    if old is not None and new is not None and old != new:
        raise bad_request("max_completion_tokens", "max_tokens says something else")
    return old if new is None else new


def read_logprobs(body: Fields, limits: Limits) -> dict[str, Any]:
    wanted = body.flag("logprobs")
    top = body.integer("top_logprobs", low=0, high=limits.top_logprobs)
    if top and not wanted:
        raise bad_request("top_logprobs", "only with logprobs=true")
    return {"logprobs": wanted or None, "top_logprobs": top or None}


async def chunks(
    events: AsyncIterator[Event], head: Head, model: ServedModel, request: ChatRequest, include_usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """The stream: first the role, then deltas, one finish_reason for each choice, at the end the usage if asked for."""

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return base | {"choices": [choice]}

    base: dict[str, Any] = {
        "id": head.id, "object": "chat.completion.chunk", "created": head.created, "model": head.model,
    }  # fmt: skip
    if include_usage:
        base["usage"] = None
    usage = Usage()
    async for event in events:
        usage.note(event)
        if isinstance(event, Started):
            for index in range(request.n):
                yield chunk(index, {"role": "assistant", "content": ""})
        elif isinstance(event, TextDelta):
            delta = {} if not event.text else {"reasoning_content" if event.thought else "content": event.text}
            yield chunk(event.index, delta, logprobs=logprobs_of(model, request, event.logprobs))
        elif isinstance(event, ToolCall):
            yield chunk(event.index, {"tool_calls": [{"index": event.position} | call_of(event)]})
        else:
            yield chunk(event.index, {}, event.reason)
    if include_usage:
        yield base | {"choices": [], "usage": usage.as_openai()}


async def completion(
    events: AsyncIterator[Event], head: Head, model: ServedModel, request: ChatRequest
) -> dict[str, Any]:
    everything = [event async for event in events]
    usage = Usage()
    for event in everything:
        usage.note(event)
    choices = []
    for answer in collected(everything, request.n):
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [call_of(call) for call in answer.calls]
        if model.reasons:
            message["reasoning_content"] = answer.thought or None
        logprobs = logprobs_of(model, request, answer.logprobs)
        choices.append({
            "index": answer.index, "message": message, "logprobs": logprobs, "finish_reason": answer.reason,
        })  # fmt: skip
    return {
        "id": head.id, "object": "chat.completion", "created": head.created, "model": head.model,
        "choices": choices, "usage": usage.as_openai(),
    }  # fmt: skip


@dataclass(slots=True)
class Usage:
    """Tokens of one exchange. Prompt tokens count once, whatever n is."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    thought: int = 0

    def note(self, event: Event) -> None:
        if isinstance(event, Started):
            self.prompt, self.cached = event.prompt_tokens, event.cached_tokens
        elif isinstance(event, Finished):
            self.completion += event.completion_tokens
            self.thought += event.thought_tokens

    def as_openai(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.thought},
        }


def call_of(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def logprobs_of(model: ServedModel, request: ChatRequest, entries: Any) -> dict[str, Any] | None:
    """None where none were asked for."""
    if not request.params.get("logprobs"):
        return None
    return {"content": [_entry(model, entry) for entry in entries], "refusal": None}


def _entry(model: ServedModel, entry: TokenLogprob) -> dict[str, Any]:
    top = [token_of(model, token_id) | {"logprob": logprob} for token_id, logprob in entry.top]
    return token_of(model, entry.token_id) | {"logprob": entry.logprob, "top_logprobs": top}


def token_of(model: ServedModel, token_id: int) -> dict[str, Any]:
    """Special tokens by name; a part of a character as U+FFFD, with its exact bytes beside."""
    raw = model.tokenizer.decode_bytes([token_id], skip_special_tokens=False)
    return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw)}
