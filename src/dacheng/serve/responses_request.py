"""A request to OpenAI's Responses API as the chat that it asks for."""

from __future__ import annotations

from typing import Any

from dacheng.serve.api_error import bad_request, unimplemented
from dacheng.serve.chat import ChatRequest
from dacheng.serve.fields import Fields
from dacheng.serve.limits import Limits
from dacheng.serve.messages import checked_tool, plain_part, read_text, read_tool_choice
from dacheng.serve.served_model import ServedModel

_TEXT_PARTS = ("input_text", "output_text", "text")


def read_response_request(body: Fields, model: ServedModel, limits: Limits) -> ChatRequest:
    """OpenAI asks for nothing here, not even an input: then the model begins by itself."""
    messages: list[dict[str, Any]] = []
    if (instructions := body.text("instructions")) is not None:
        messages.append({"role": "system", "content": instructions})
    messages += _input(body, limits)
    tools = _tools(body, limits)
    use_tools = read_tool_choice(body, tools)
    _refuse_what_is_missing(body)
    return ChatRequest(
        messages=messages,
        tools=tools,
        use_tools=use_tools,
        max_tokens=body.integer("max_output_tokens", low=1, high=limits.max_tokens),
        params={
            "temperature": body.number("temperature", low=0, high=2),
            "top_p": body.number("top_p", low=0, high=1),
        },
    )


def _refuse_what_is_missing(body: Fields) -> None:
    """Answers are not kept here: what would need an earlier one is refused; `store` is true where clients say nothing,
    and the answer says false."""
    for key in ("previous_response_id", "conversation", "prompt", "context_management", "moderation", "max_tool_calls"):
        body.only(key)
    body.only("background", False)
    body.only("store", False)
    body.only("include", [])
    body.only("truncation", "disabled")
    body.only("parallel_tool_calls", True)
    body.only("top_logprobs", 0)
    body.only("service_tier", "auto", "default")
    for key in ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"):
        body.text(key, longest=512)
    if (metadata := body.object("metadata")) is not None:
        metadata.rest()
    if (reasoning := body.object("reasoning")) is not None:
        for key in ("effort", "summary", "generate_summary"):
            reasoning.only(key)
        reasoning.done()
    if (text := body.object("text")) is not None:
        text.only("verbosity", "medium")
        if (form := text.object("format")) is not None:
            if form.demand("type", form.text("type")) != "text":
                raise unimplemented("text.format", "use {'type': 'text'}")
            form.done()
        text.done()
    if (options := body.object("stream_options")) is not None:
        options.only("include_obfuscation", False)
        options.done()


def _input(body: Fields, limits: Limits) -> list[dict[str, Any]]:
    found = body.raw("input")
    if isinstance(found, str):
        return [{"role": "user", "content": found}]
    if found is None:
        return []
    if not isinstance(found, list) or len(found) > limits.messages:
        raise bad_request("input", f"expected a string, or a list of at most {limits.messages} items")
    messages: list[dict[str, Any]] = []
    for i, item in enumerate(found):
        message = _item(Fields(item, f"input[{i}]"))
        if "tool_calls" in message and messages and messages[-1]["role"] == "assistant":  # of one turn
            messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            messages.append(message)
    return messages


def _item(entry: Fields) -> dict[str, Any]:
    kind = entry.text("type", "message")
    entry.text("id")
    entry.text("status")
    if kind == "function_call":
        name = entry.demand("name", entry.text("name"))
        function = {"name": name, "arguments": entry.text("arguments", "{}") or "{}"}
        call = {"type": "function", "id": entry.demand("call_id", entry.text("call_id")), "function": function}
        message = {"role": "assistant", "content": "", "tool_calls": [call]}
    elif kind == "function_call_output":
        call_id = entry.demand("call_id", entry.text("call_id"))
        output = entry.demand("output", entry.raw("output"))
        message = {"role": "tool", "tool_call_id": call_id, "content": _text(output, entry.path("output"))}
    elif kind == "message":
        roles = ("user", "assistant", "system", "developer")
        role = entry.demand("role", entry.text("role", choices=roles))
        content = entry.demand("content", entry.raw("content"))
        role = "system" if role == "developer" else role
        message = {"role": role, "content": _text(content, entry.path("content"))}
    else:
        raise unimplemented(entry.path("type"), f"{kind!r} is no item that it knows")
    entry.done()
    return message


def _text(content: Any, where: str) -> str:
    return read_text(content, where, _TEXT_PARTS, _text_part)


def _text_part(entry: Fields) -> str:
    entry.only("annotations", [])
    entry.only("logprobs", [])
    return plain_part(entry)


def _tools(body: Fields, limits: Limits) -> list[dict[str, Any]] | None:
    items = body.items("tools", most=limits.tools)
    tools = []
    for i, item in enumerate(items or []):
        entry = Fields(item, f"tools[{i}]")
        if entry.demand("type", entry.text("type")) != "function":
            raise unimplemented(entry.path("type"), "only functions are")
        tools.append(checked_tool(entry))
    return tools or None
