"""Messages of OpenAI's chat API, checked and made what ChatRenderer takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dacheng.serve.api_error import bad_request, unimplemented
from dacheng.serve.fields import Fields
from dacheng.serve.limits import Limits

ROLES = ("system", "developer", "user", "assistant", "tool")


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
