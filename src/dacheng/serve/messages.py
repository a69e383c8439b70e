"""Messages and tools of OpenAI's chat API, checked and made what ChatRenderer takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from dacheng.protocols import Grammar
from dacheng.serve.api_error import bad_request, unimplemented
from dacheng.serve.fields import Fields
from dacheng.serve.limits import Limits

ROLES = ("system", "developer", "user", "assistant", "tool")
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def read_messages(body: Fields, limits: Limits, *, knows_developer: bool) -> list[dict[str, Any]]:
    """knows_developer: whether the template has that role; elsewhere it is "system", which it renamed."""
    items = body.demand("messages", body.items("messages", most=limits.messages))
    if not items:
        raise bad_request("messages", "there is no message")
    messages = [_message(Fields(item, f"messages[{i}]")) for i, item in enumerate(items)]
    for message in messages:
        if message["role"] == "developer" and not knows_developer:
            message["role"] = "system"
    return messages


def _message(entry: Fields) -> dict[str, Any]:
    role = entry.demand("role", entry.text("role", choices=ROLES))
    message: dict[str, Any] = {"role": role}
    content = entry.raw("content")
    if content is not None:
        message["content"] = read_text(content, entry.path("content"))
    name = entry.text("name", longest=128)
    if name is not None:
        message["name"] = name
    if role == "assistant":
        entry.only("refusal")
        entry.only("audio")
        entry.only("function_call")
        entry.only("annotations", [])
        if (thought := entry.text("reasoning_content")) is not None:
            message["reasoning_content"] = thought
        calls = entry.items("tool_calls", most=128)
        if calls:
            message["tool_calls"] = [
                _call(Fields(call, f"{entry.path('tool_calls')}[{i}]")) for i, call in enumerate(calls)
            ]
            message.setdefault("content", "")
    elif role == "tool":
        message["tool_call_id"] = entry.demand("tool_call_id", entry.text("tool_call_id"))
    entry.done()
    if "content" not in message:
        raise bad_request(entry.path("content"), "this field is required")
    return message


def plain_part(entry: Fields) -> str:
    """The text of a part that has nothing else."""
    text = entry.demand("text", entry.text("text"))
    entry.done()
    return text


def read_text(
    content: Any, where: str, kinds: tuple[str, ...] = ("text",), part: Callable[[Fields], str] = plain_part
) -> str:
    """A string, or a list of text parts, which are joined. kinds: types of such parts in this API; part: reads one,
    with the further fields that the API lets it have."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(where, "expected a string or a list of parts")
    texts = []
    for i, item in enumerate(content):
        entry = Fields(item, f"{where}[{i}]")
        if entry.demand("type", entry.text("type")) not in kinds:
            raise unimplemented(entry.path("type"), f"only parts of type {' or '.join(kinds)} are")
        texts.append(part(entry))
    return "".join(texts)


def _call(entry: Fields) -> dict[str, Any]:
    entry.text("type", "function", choices=("function",))
    entry.raw("index")  # some clients send back what they streamed
    function = entry.demand("function", entry.object("function"))
    name = function.demand("name", function.text("name"))
    arguments = function.text("arguments", "{}") or "{}"
    found = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if (call_id := entry.text("id")) is not None:
        found["id"] = call_id
    function.done()
    entry.done()
    return found


def read_tools(body: Fields, limits: Limits) -> list[dict[str, Any]] | None:
    items = body.items("tools", most=limits.tools)
    if not items:
        return None
    tools, names = [], set()
    for i, item in enumerate(items):
        entry = Fields(item, f"tools[{i}]")
        if (kind := entry.demand("type", entry.text("type"))) != "function":
            raise unimplemented(f"tools[{i}].type", f"{kind!r} is no function")
        function = entry.demand("function", entry.object("function"))
        entry.done()
        tools.append(checked_tool(function))
        if (name := tools[-1]["function"]["name"]) in names:
            raise bad_request(f"tools[{i}].function.name", f"{name} is there twice")
        names.add(name)
    return tools


def checked_tool(function: Fields, *, schema: str = "parameters") -> dict[str, Any]:
    """A function as the templates know it; `schema`: the field that holds its JSON schema."""
    name = function.demand("name", function.text("name"))
    if not _NAME.fullmatch(name):
        raise bad_request(function.path("name"), "expected letters, digits, _ . : -, 128 at most")
    found: dict[str, Any] = {"name": name, "description": function.text("description", "")}
    parameters = function.raw(schema, {"type": "object", "properties": {}})
    if not isinstance(parameters, dict):
        raise bad_request(function.path(schema), "expected a JSON schema")
    found["parameters"] = parameters
    function.only("strict", False)
    function.done()
    return {"type": "function", "function": found}


def read_tool_choice(body: Fields, tools: list[dict[str, Any]] | None) -> bool:
    """Whether calls are looked for."""
    choice = body.raw("tool_choice")
    if choice is None or choice == "auto":
        return tools is not None
    if choice == "none":
        return False
    if tools is None:
        raise bad_request("tool_choice", "there are no tools")
    if choice == "required" or isinstance(choice, dict):
        raise unimplemented("tool_choice", "use 'auto' or 'none'")
    raise bad_request("tool_choice", "expected auto or none")


def read_response_format(body: Fields) -> Grammar | None:
    """What the answer must be; None: any text. Whether a schema can be followed is said by the engine."""
    form = body.object("response_format")
    if form is None:
        return None
    kind = form.demand("type", form.text("type", choices=("text", "json_object", "json_schema")))
    grammar = None
    if kind == "json_object":
        grammar = Grammar.json_object()
    elif kind == "json_schema":
        inner = form.demand("json_schema", form.object("json_schema"))
        inner.demand("name", inner.text("name", longest=64))
        inner.text("description", longest=4096)
        inner.flag("strict")  # the schema is always kept to
        schema = inner.demand("schema", inner.raw("schema"))
        if not isinstance(schema, dict):
            raise bad_request(inner.path("schema"), "expected a JSON schema")
        grammar = Grammar.json_schema(schema)
        inner.done()
    form.done()
    return grammar
