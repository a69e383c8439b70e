"""/v1/chat/completions."""

from __future__ import annotations

from dacheng.serve.limits import Limits
from dacheng.serve.openapi import shared
from dacheng.serve.openapi.schema import (
    ANY_OBJECT,
    BOOL,
    NONE,
    Schema,
    asked,
    const,
    integer,
    items,
    number,
    only,
    or_null,
    ref,
    said,
    text,
)  # fmt: skip


def request(limits: Limits) -> Schema:
    """serve.openai_chat.read_chat_request."""
    fields: dict[str, Schema] = {
        "model": shared.MODEL, "messages": shared.messages(limits), "stream": BOOL,
        "stream_options": shared.stream_options(), "tools": shared.tools(limits), "tool_choice": shared.tool_choice(),
        "parallel_tool_calls": BOOL, "n": integer(1, limits.n), "max_tokens": integer(1, limits.max_tokens),
        "max_completion_tokens": integer(1, limits.max_tokens), **shared.sampling(limits), **shared.structure(),
        "logprobs": BOOL, "top_logprobs": integer(0, limits.top_logprobs), "cache_salt": text(256),
        "chat_template_kwargs": ANY_OBJECT, "continue_final_message": BOOL, "add_generation_prompt": BOOL,
        "reasoning_effort": text(16), "audio": NONE, "function_call": NONE, "functions": NONE, "prediction": NONE,
        "verbosity": only("medium"), "web_search_options": NONE, "moderation": NONE, "store": only(False),
        "modalities": only(["text"]), "service_tier": only("auto", "default"), "metadata": ANY_OBJECT,
        **dict.fromkeys(("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"), shared.LABEL),
    }  # fmt: skip
    return asked(fields, "model", "messages")


def answers() -> dict[str, Schema]:
    """Components."""
    call = said({"id": text(), "type": const("function"), "function": said({"name": text(), "arguments": text()})})
    token: dict[str, Schema] = {"token": text(), "bytes": items(integer(0, 255)), "logprob": number()}
    logprobs = said({"content": items(said({**token, "top_logprobs": items(said(token))})), "refusal": NONE})
    head: dict[str, Schema] = {"id": text(), "created": integer(), "model": text()}
    message = said(
        {"role": const("assistant"), "content": or_null(text()), "refusal": NONE},
        maybe={"tool_calls": items(call), "reasoning_content": or_null(text())},
    )
    reason = only("stop", "length", "tool_calls")
    choice: dict[str, Schema] = {"index": integer(), "logprobs": or_null(logprobs)}
    delta = said({}, maybe={
        "role": const("assistant"), "content": text(), "reasoning_content": text(),
        "tool_calls": items(call | {"properties": call["properties"] | {"index": integer()}}),
    })  # fmt: skip
    return {
        "ChatUsage": usage(),
        "ChatCompletion": said({
            **head, "object": const("chat.completion"), "usage": ref("ChatUsage"),
            "choices": items(said({**choice, "message": message, "finish_reason": reason})),
        }),
        "ChatCompletionChunk": said({
            **head, "object": const("chat.completion.chunk"),
            "choices": items(said({**choice, "delta": delta, "finish_reason": or_null(reason)})),
        }, maybe={"usage": or_null(ref("ChatUsage"))}),
    }  # fmt: skip


def usage() -> Schema:
    return said({
        "prompt_tokens": integer(0), "completion_tokens": integer(0), "total_tokens": integer(0),
        "prompt_tokens_details": said({"cached_tokens": integer(0)}),
    }, maybe={"completion_tokens_details": said({"reasoning_tokens": integer(0)})})  # fmt: skip
