"""/v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from dacheng.serve.limits import Limits
from dacheng.serve.openapi import shared
from dacheng.serve.openapi.schema import (
    ANY_OBJECT,
    BOOL,
    JSON_SCHEMA,
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

_CACHE = asked({"type": only("ephemeral"), "ttl": only("5m", "1h")})


def request(limits: Limits) -> Schema:
    """serve.anthropic_request.read_anthropic."""
    fields = {
        **_counted(limits), "stream": BOOL, "max_tokens": integer(1, limits.max_tokens),
        "metadata": asked({"user_id": text()}), "service_tier": only("auto", "standard_only"),
        "temperature": number(0, 1), "top_p": number(0, 1), "top_k": integer(0), "stop_sequences": shared.stops(limits),
    }  # fmt: skip
    return asked(fields, "model", "messages", "max_tokens")


def count_request(limits: Limits) -> Schema:
    return asked(_counted(limits), "model", "messages")


def _counted(limits: Limits) -> dict[str, Schema]:
    tool = asked({"type": only("custom"), "cache_control": _CACHE, **shared.function("input_schema")}, "name")
    form = asked({"type": only("json_schema"), "schema": JSON_SCHEMA}, "type", "schema")
    choice = asked(
        {"type": only("auto", "any", "tool", "none"), "name": text(), "disable_parallel_tool_use": BOOL}, "type"
    )
    return {
        "model": shared.MODEL, "messages": items(_message(), limits.messages, 1), "system": _texts(),
        "tools": items(tool, limits.tools), "tool_choice": choice, "cache_control": _CACHE,
        "thinking": asked({"type": only("disabled", "adaptive")}, "type"), "output_format": form,
        "output_config": asked({"format": form, "effort": NONE}), "container": NONE, "context_management": NONE,
        "mcp_servers": only([]),
    }  # fmt: skip


def _texts() -> Schema:
    return either(text(), items(_text_block()))


def _text_block() -> Schema:
    fields = {"type": only("text"), "text": text(), "citations": only([]), "cache_control": _CACHE}
    return asked(fields, "type", "text")


def _message() -> Schema:
    thinking = asked(
        {"type": only("thinking"), "thinking": text(), "signature": text(), "cache_control": _CACHE}, "type", "thinking"
    )
    use = asked(
        {"type": only("tool_use"), "id": text(), "name": text(), "input": ANY_OBJECT, "cache_control": _CACHE},
        "type", "id", "name",
    )  # fmt: skip
    result = asked(
        {
            "type": only("tool_result"), "tool_use_id": text(), "content": _texts(), "is_error": BOOL,
            "cache_control": _CACHE,
        }, "type", "tool_use_id",
    )  # fmt: skip
    blocks = items(either(_text_block(), thinking, use, result), None, 1)
    return asked({"role": only("user", "assistant"), "content": either(text(), blocks)}, "role", "content")


def answers() -> dict[str, Schema]:
    block = either(
        said({"type": const("text"), "text": text()}),
        said({"type": const("thinking"), "thinking": text(), "signature": text()}),
        said({"type": const("tool_use"), "id": text(), "name": text(), "input": ANY_OBJECT}),
    )
    counts = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    reasons = only("end_turn", "max_tokens", "stop_sequence", "tool_use")
    return {
        "Message": said({
            "id": text(), "type": const("message"), "role": const("assistant"), "model": text(),
            "content": items(block), "stop_reason": reasons, "stop_sequence": or_null(text()),
            "usage": said(dict.fromkeys(counts, integer(0))),
        }),
        "TokenCount": said({"input_tokens": integer(0)}),
        "AnthropicError": said({
            "type": const("error"), "error": said({"type": text(), "message": text()}), "request_id": text(),
        }),
    }  # fmt: skip
