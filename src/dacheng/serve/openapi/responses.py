"""/v1/responses."""

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
    either,
    integer,
    items,
    number,
    only,
    or_null,
    said,
    text,
)

_TEXT_KINDS = ("input_text", "output_text", "text")


def request(limits: Limits) -> Schema:
    """serve.responses_request.read_response_request."""
    function = asked({"type": only("function"), **shared.function()}, "type", "name")
    reasoning = asked({"effort": text(16), "summary": NONE, "generate_summary": NONE})
    fields: dict[str, Schema] = {
        "model": shared.MODEL, "stream": BOOL, "instructions": text(),
        "input": either(text(), items(_item(), limits.messages)), "tools": items(function, limits.tools),
        "tool_choice": _tool_choice(), "parallel_tool_calls": BOOL,
        "max_output_tokens": integer(1, limits.max_tokens), "temperature": number(0, 2), "top_p": number(0, 1),
        "text": asked({"verbosity": only("medium"), "format": _format()}), "reasoning": reasoning,
        "stream_options": asked({"include_obfuscation": only(False)}), "metadata": ANY_OBJECT,
        "background": only(False), "store": only(False), "truncation": only("disabled"),
        "include": only([], ["reasoning.encrypted_content"]), "top_logprobs": only(0),
        "service_tier": only("auto", "default"), "max_tool_calls": integer(0),
        **dict.fromkeys(("previous_response_id", "conversation", "prompt", "context_management", "moderation"), NONE),
        **dict.fromkeys(("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"), shared.LABEL),
    }  # fmt: skip
    return asked(fields)


def _format() -> Schema:
    return either(
        asked({"type": only("text", "json_object")}, "type"),
        asked({"type": only("json_schema"), **shared.named_schema()}, "type", "name", "schema"),
    )


def _tool_choice() -> Schema:
    named = asked({"type": only("function"), "name": text()}, "type", "name")
    allowed = {"type": only("allowed_tools"), "mode": only("auto", "required"), "tools": items(named, 128, 1)}
    return either(only("none", "auto", "required"), named, asked(allowed, "type", "mode", "tools"))


def _item() -> Schema:
    part = {"type": only(*_TEXT_KINDS), "text": text(), "annotations": only([]), "logprobs": only([])}
    content = either(text(), items(asked(part, "type", "text")))
    thought = either(text(), items(asked({"type": only("reasoning_text"), "text": text()}, "type", "text")))
    known = {"id": text(), "status": text()}
    return either(
        asked({**known, "type": only("message"), "content": content,
               "role": only("user", "assistant", "system", "developer")}, "role", "content"),
        asked({**known, "type": only("function_call"), "call_id": text(), "name": text(), "arguments": text()},
              "type", "call_id", "name"),
        asked({**known, "type": only("function_call_output"), "call_id": text(), "output": content},
              "type", "call_id", "output"),
        asked({**known, "type": only("reasoning"), "content": thought, "summary": only([]), "encrypted_content": NONE},
              "type"),
    )  # fmt: skip


def answers() -> dict[str, Schema]:
    part = said({
        "type": const("output_text"), "text": text(), "annotations": const([]), "logprobs": const([]),
    })  # fmt: skip
    thought = said({"type": const("reasoning_text"), "text": text()})
    head = {"id": text(), "status": only("completed", "incomplete")}
    output = either(
        said({**head, "type": const("message"), "role": const("assistant"), "content": items(part)}),
        said({**head, "type": const("reasoning"), "summary": const([]), "content": items(thought)}),
        said({**head, "type": const("function_call"), "call_id": text(), "name": text(), "arguments": text()}),
    )
    usage = said({
        "input_tokens": integer(0), "output_tokens": integer(0), "total_tokens": integer(0),
        "input_tokens_details": said({"cached_tokens": integer(0), "cache_write_tokens": integer(0)}),
        "output_tokens_details": said({"reasoning_tokens": integer(0)}),
    })  # fmt: skip
    return {"Response": said({
        "id": text(), "object": const("response"), "created_at": integer(), "model": text(), "output": items(output),
        "status": only("completed", "incomplete"), "usage": usage, "background": const(False), "error": NONE,
        "incomplete_details": or_null(said({"reason": const("max_output_tokens")})), "previous_response_id": NONE,
        "store": const(False), "truncation": const("disabled"), "instructions": or_null(text()),
        "reasoning": said({"effort": or_null(text()), "summary": NONE}), "text": said({"format": ANY_OBJECT}),
        "tools": items(ANY_OBJECT), "tool_choice": either(text(), ANY_OBJECT), "parallel_tool_calls": BOOL,
        "metadata": ANY_OBJECT, "temperature": or_null(number()), "top_p": or_null(number()),
        "max_output_tokens": or_null(integer(1)),
    })}  # fmt: skip
