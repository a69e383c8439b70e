"""A request to Anthropic's API as the chat that it asks for."""

from __future__ import annotations

from typing import Any

from dacheng.protocols import Grammar
from dacheng.serve.api_error import bad_request, unimplemented
from dacheng.serve.chat import ChatRequest
from dacheng.serve.fields import Fields
from dacheng.serve.limits import Limits
from dacheng.serve.messages import read_text
from dacheng.serve.reasoning import thinking_variables
from dacheng.serve.sampling import read_stops
from dacheng.serve.served_model import ServedModel
from dacheng.serve.structure import Structure
from dacheng.serve.tools import ToolRule, Tools, checked_tool, gathered, rule_of


def read_anthropic(body: Fields, model: ServedModel, limits: Limits, *, counting: bool = False) -> ChatRequest:
    """counting: only the tokens are asked for, and max_tokens is not there."""
    messages = _system(body)
    items = body.demand("messages", body.items("messages", most=limits.messages))
    if not items:
        raise bad_request("messages", "there is no message")
    for i, item in enumerate(items):
        messages += _message(Fields(item, f"messages[{i}]"))
    tools = _tools(body, limits)
    rule = _tool_choice(body, tools)
    variables = _thinking(body, model)
    structure = _structure(body)
    for key in ("container", "context_management"):
        body.only(key)
    body.only("mcp_servers", [])
    _cache_control(body)
    params: dict[str, Any] = {}
    max_tokens = None
    if not counting:
        max_tokens = body.demand("max_tokens", body.integer("max_tokens", low=1, high=limits.max_tokens))
        if (metadata := body.object("metadata")) is not None:
            metadata.text("user_id")
            metadata.done()
        body.only("service_tier", "auto", "standard_only")
        params = {
            "temperature": body.number("temperature", low=0, high=1),
            "top_p": body.number("top_p", low=0, high=1),
            "top_k": body.integer("top_k", low=0),
            "stop": read_stops(body, "stop_sequences", limits),
        }
    continue_final = messages[-1]["role"] == "assistant"  # the answer goes on with what the last message says
    return ChatRequest(
        messages=messages, params=params, tools=tools, rule=rule, max_tokens=max_tokens,
        continue_final=continue_final, structure=structure, variables=variables,
    )  # fmt: skip


def _thinking(body: Fields, model: ServedModel) -> dict[str, Any]:
    """Variables of the template. Whether it thinks is the model's to say ("adaptive"), or it is told not to."""
    thinking = body.object("thinking")
    if thinking is None:
        return {}
    kind = thinking.demand("type", thinking.text("type", choices=("disabled", "adaptive", "enabled")))
    template = "" if model.renderer is None else model.renderer.template
    variables = thinking_variables(template, "none", model.reasons) if kind == "disabled" else {}
    if kind == "enabled" or variables is None or (kind == "adaptive" and not model.reasons):
        remedy = "use 'adaptive' or leave it out" if model.reasons else "this model has no thoughts; use 'disabled'"
        raise unimplemented("thinking.type", remedy)
    thinking.done()
    return variables


def _structure(body: Fields) -> Structure | None:
    """output_config.format, and output_format, as it was called before."""
    found = _format(body, "output_format")
    if (config := body.object("output_config")) is not None:
        config.only("effort")
        form = _format(config, "format")
        if form is not None and found is not None:
            raise bad_request("output_config.format", "not together with output_format")
        found = form or found
        config.done()
    return found


def _format(body: Fields, key: str) -> Structure | None:
    form = body.object(key)
    if form is None:
        return None
    form.demand("type", form.text("type", choices=("json_schema",)))
    schema = form.demand("schema", form.raw("schema"))
    form.done()
    if not isinstance(schema, dict):
        raise bad_request(form.path("schema"), "expected a JSON schema")
    return Structure(Grammar.json_schema(schema), body.path(key))


def _system(body: Fields) -> list[dict[str, Any]]:
    system = body.raw("system")
    return (
        []
        if system is None
        else [{"role": "system", "content": read_text(system, body.path("system"), part=_text_block)}]
    )


def _text_block(entry: Fields) -> str:
    text = entry.demand("text", entry.text("text"))
    entry.only("citations", [])
    _finish_block(entry)
    return text


def _finish_block(entry: Fields) -> None:
    _cache_control(entry)
    entry.done()


def _cache_control(entry: Fields) -> None:
    """A hint, and every prefix is kept here without it."""
    control = entry.object("cache_control")
    if control is not None:
        control.text("type", choices=("ephemeral",))
        control.text("ttl", choices=("5m", "1h"))
        control.done()


def _message(entry: Fields) -> list[dict[str, Any]]:
    """One message, or several: results of tools are messages of their own."""
    role = entry.demand("role", entry.text("role", choices=("user", "assistant")))
    content = entry.demand("content", entry.raw("content"))
    entry.done()
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not content:
        raise bad_request(entry.path("content"), "expected a string or a list of blocks")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for i, item in enumerate(content):
        block = Fields(item, f"{entry.path('content')}[{i}]")
        kind = block.demand("type", block.text("type"))
        if kind == "text":
            texts.append(_text_block(block))
        elif kind == "thinking" and role == "assistant":
            thoughts.append(block.demand("thinking", block.text("thinking")))
            block.text("signature")
            _finish_block(block)
        elif kind == "tool_use" and role == "assistant":
            calls.append(_tool_use(block))
        elif kind == "tool_result" and role == "user":
            results.append(_tool_result(block))
        else:
            raise unimplemented(block.path("type"), f"{kind!r} has no place in a message of the {role}")
    if not texts and not calls and not thoughts:
        return results
    message: dict[str, Any] = {"role": role, "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return [*results, message]


def _tool_use(block: Fields) -> dict[str, Any]:
    found = block.raw("input", {})
    if not isinstance(found, dict):
        raise bad_request(block.path("input"), "expected an object")
    call_id = block.demand("id", block.text("id"))
    name = block.demand("name", block.text("name"))
    _finish_block(block)
    return {"type": "function", "id": call_id, "function": {"name": name, "arguments": found}}


def _tool_result(block: Fields) -> dict[str, Any]:
    call_id = block.demand("tool_use_id", block.text("tool_use_id"))
    content = read_text(block.raw("content", ""), block.path("content"), part=_text_block)
    block.flag("is_error")  # the text says so: the templates have no other place for it
    _finish_block(block)
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def _tools(body: Fields, limits: Limits) -> Tools:
    found = []
    for i, item in enumerate(body.items("tools", most=limits.tools) or []):
        entry = Fields(item, f"tools[{i}]")
        if entry.text("type", "custom") != "custom":
            raise unimplemented(entry.path("type"), "only tools of yours (type custom) are")
        _cache_control(entry)
        found.append(checked_tool(entry, schema="input_schema"))
    return gathered(found, "tools[{}].name")


def _tool_choice(body: Fields, tools: Tools) -> ToolRule | None:
    """None: no calls are looked for."""
    choice = body.object("tool_choice")
    if choice is None:
        return rule_of(tools) if tools.functions else None
    kind = choice.demand("type", choice.text("type", choices=("auto", "any", "tool", "none")))
    parallel = kind == "none" or not choice.flag("disable_parallel_tool_use")
    names = [choice.demand("name", choice.text("name"))] if kind == "tool" else None
    choice.done()
    if kind == "none":
        return None
    if not tools.functions:
        raise bad_request("tool_choice", "there are no tools")
    return rule_of(tools, must=kind in ("any", "tool"), names=names, parallel=parallel)
