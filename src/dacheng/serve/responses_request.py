"""A request to OpenAI's Responses API as the chat that it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dacheng.serve.api_error import bad_request, unimplemented
from dacheng.serve.chat import ChatRequest
from dacheng.serve.fields import Fields
from dacheng.serve.limits import Limits
from dacheng.serve.messages import plain_part, read_text
from dacheng.serve.openai_chat import read_effort
from dacheng.serve.served_model import ServedModel
from dacheng.serve.structure import Structure, read_format
from dacheng.serve.tools import Tools, checked_tool, gathered, read_tool_choice

_TEXT_PARTS = ("input_text", "output_text", "text")


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """echo: fields that the response repeats."""

    chat: ChatRequest
    echo: dict[str, Any]


def read_response_request(body: Fields, model: ServedModel, limits: Limits) -> ResponseRequest:
    """OpenAI asks for nothing here, not even an input: then the model begins by itself."""
    echo: dict[str, Any] = {"instructions": body.text("instructions")}
    messages: list[dict[str, Any]] = []
    if echo["instructions"] is not None:
        messages.append({"role": "system", "content": echo["instructions"]})
    messages += _input(body, limits)
    tools = _tools(body, limits)
    echo["tools"] = [
        {"type": "function", "strict": tool["function"]["name"] in tools.strict} | tool["function"]
        for tool in tools.functions
    ]
    echo["tool_choice"] = body.peek("tool_choice", "auto")
    echo["parallel_tool_calls"] = body.peek("parallel_tool_calls", True)
    rule = read_tool_choice(body, tools, flat=True)
    structure, echo["text"] = _text_options(body)
    _refuse_what_is_missing(body, model)
    variables, echo["reasoning"] = _reasoning(body, model)
    metadata = body.object("metadata")
    echo["metadata"] = {} if metadata is None else metadata.rest()
    params = {"temperature": body.number("temperature", low=0, high=2), "top_p": body.number("top_p", low=0, high=1)}
    max_tokens = echo["max_output_tokens"] = body.integer("max_output_tokens", low=1, high=limits.max_tokens)
    chat = ChatRequest(
        messages=messages,
        tools=tools,
        rule=rule,
        structure=structure,
        max_tokens=max_tokens,
        params=params,
        variables=variables,
    )
    return ResponseRequest(chat, echo | params)


def _text_options(body: Fields) -> tuple[Structure | None, dict[str, Any]]:
    """(structure, what the response says of it)."""
    text = body.object("text")
    if text is None:
        return None, {"format": {"type": "text"}}
    text.only("verbosity", "medium")
    form = text.peek("format", {"type": "text"})
    structure = read_format(text, "format", flat=True)
    text.done()
    return structure, {"format": form}


def _refuse_what_is_missing(body: Fields, model: ServedModel) -> None:
    """Answers are not kept here: what would need an earlier one is refused; `store` is true where clients say nothing,
    and the answer says false. Thoughts are given as they are: only without any is nothing to be encrypted."""
    for key in ("previous_response_id", "conversation", "prompt", "context_management", "moderation"):
        body.only(key)
    body.only("background", False)
    body.only("store", False)
    body.only("include", [], *([] if model.reasons else [["reasoning.encrypted_content"]]))
    body.only("truncation", "disabled")
    body.only("top_logprobs", 0)
    body.only("service_tier", "auto", "default")
    for key in ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"):
        body.text(key, longest=512)
    body.integer("max_tool_calls", low=0)  # of OpenAI's own tools, of which there are none
    if (options := body.object("stream_options")) is not None:
        options.only("include_obfuscation", False)
        options.done()


def _reasoning(body: Fields, model: ServedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables of the template, what the response says of it)."""
    said: dict[str, Any] = {"effort": None, "summary": None}
    reasoning = body.object("reasoning")
    if reasoning is None:
        return {}, said
    said["effort"] = reasoning.peek("effort")
    variables = read_effort(reasoning, model, "effort")
    for key in ("summary", "generate_summary"):  # thoughts are given as they are
        reasoning.only(key)
    reasoning.done()
    return variables, said


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
        last: dict[str, Any] = messages[-1] if messages else {"role": ""}
        of_one_turn = message["role"] == last["role"] == "assistant"
        if of_one_turn and "tool_calls" in message:
            last.setdefault("tool_calls", []).extend(message["tool_calls"])
        elif of_one_turn and "reasoning_content" in last and not last["content"] and "tool_calls" not in last:
            last["content"] = message["content"]
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
    elif kind == "reasoning":
        entry.only("encrypted_content")
        entry.only("summary", [])
        thought = read_text(entry.raw("content", ""), entry.path("content"), ("reasoning_text",))
        message = {"role": "assistant", "content": "", "reasoning_content": thought}
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


def _tools(body: Fields, limits: Limits) -> Tools:
    found = []
    for i, item in enumerate(body.items("tools", most=limits.tools) or []):
        entry = Fields(item, f"tools[{i}]")
        if entry.demand("type", entry.text("type")) != "function":
            raise unimplemented(entry.path("type"), "only functions are")
        found.append(checked_tool(entry))
    return gathered(found, "tools[{}].name")
