"""A conversation on its way into a template: plain data, checked, every string marked with where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dacheng.errors import UsageError
from dacheng.text.chat.environment import Arguments
from dacheng.text.chat.tracked import Tracked, join_pieces

# A role becomes a part of special tokens ('<|' + role + '|>' in Phi-3's template): no other words are let in unasked.
ROLES = (
    "system", "developer", "user", "assistant", "tool", "ipython", "function", "model", "observation", "environment",
)  # fmt: skip
ASSISTANT = ("assistant", "model")
# One thought, several names; as transformers does (_alias_reasoning_fields).
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(slots=True)
class Conversation:
    """`messages`, `tools` and `variables` as the template sees them. sources[i]: what the source i + 1 of a Tracked
    is: (index of the message, its key), or ("tools" | "variables", name). indices[k]: which of the caller's messages
    messages[k] is. `notes`: what was changed on the way in."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    variables: dict[str, Any]
    sources: list[tuple[int | str, str]] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def source(self, owner: int | str, key: str) -> int:
        self.sources.append((owner, key))
        return len(self.sources)

    def message_of(self, code: int) -> int | None:
        """The index of the message that the source `code` belongs to."""
        owner = self.sources[code - 1][0] if 0 < code <= len(self.sources) else None
        return owner if isinstance(owner, int) else None


def read_conversation(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
    *,
    roles: Sequence[str] = (),
    merge_system: bool = False,
) -> Conversation:
    """Raises UsageError naming the message and what is wrong with it. Fields that are None are left out."""
    if isinstance(messages, Mapping | str) or not isinstance(messages, Sequence):
        raise UsageError("a conversation is a list of messages", field="messages", value=messages,
                         remedy='write [{"role": "user", "content": "…"}]')  # fmt: skip
    found = Conversation([], None, {})
    for i, message in enumerate(messages):
        found.messages.append(_message(found, i, message, roles))
        found.indices.append(i)
    if merge_system:
        _merge_system(found)
    if tools is not None:
        found.tools = [_tool(found, i, tool) for i, tool in enumerate(tools)]
    for name, value in variables.items():
        found.variables[name] = _plain(value, found.source("variables", name), name)
    return found


def _message(found: Conversation, i: int, message: Mapping[str, Any], roles: Sequence[str]) -> dict[str, Any]:
    where = f"messages[{i}]"
    if not isinstance(message, Mapping):
        raise UsageError("a message is an object", field=where, value=message, remedy='write {"role": …, "content": …}')
    role = message.get("role")
    if not isinstance(role, str) or role not in (*ROLES, *roles):
        raise UsageError("no such role", field=f"{where}.role", value=role,
                         remedy=f"one of {', '.join((*ROLES, *roles))}; or ChatRenderer(roles=…)")  # fmt: skip
    given = {key: value for key, value in message.items() if value is not None}
    if "content" not in given and "tool_calls" not in given:
        raise UsageError("a message has content or tool_calls", field=where, value=dict(message),
                         remedy='add "content"')  # fmt: skip
    thought = next((given[key] for key in _REASONING if key in given), None)
    if thought is not None:
        given = {"thinking": thought, **given, "reasoning_content": thought}
    plain: dict[str, Any] = {}
    thinks = found.source(i, _REASONING[0]) if thought is not None else 0
    for key, value in given.items():
        if key == "role":
            plain[key] = role  # trusted: one of the list above
        elif key == "tool_calls":
            plain[key] = _tool_calls(found, value, found.source(i, key), f"{where}.{key}")
        else:
            code = thinks if key in _REASONING else found.source(i, key)
            plain[key] = _plain(value, code, f"{where}.{key}")
    return plain


def _tool_calls(found: Conversation, calls: Any, code: int, where: str) -> list[dict[str, Any]]:
    """`arguments` become an object that also knows its JSON text, whichever of the two they were."""
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise UsageError("tool_calls is a list of objects", field=where, value=calls,
                         remedy='write [{"type": "function", "function": {"name": …, "arguments": {…}}}]')  # fmt: skip
    plain: list[dict[str, Any]] = []
    for i, call in enumerate(calls):
        made = _plain(call, code, f"{where}[{i}]")
        holder = made["function"] if isinstance(made.get("function"), dict) else made
        if "arguments" in holder:
            holder["arguments"] = _arguments(found, holder["arguments"], code, f"{where}[{i}].arguments")
        plain.append(made)
    return plain


def _arguments(found: Conversation, value: Any, code: int, where: str) -> Arguments:
    if isinstance(value, dict):
        return Arguments(value)
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise UsageError("arguments are an object, or the JSON text of one", field=where, value=value,
                         remedy='write {"name": value}')  # fmt: skip
    found.notes.append(f"{where}: JSON text, read as an object")
    return Arguments(_plain(parsed, code, where), Tracked(value, code))


def _tool(found: Conversation, i: int, tool: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise UsageError("a tool is described by a JSON schema", field=f"tools[{i}]", value=tool,
                         remedy='write {"type": "function", "function": {"name": …, "parameters": {…}}}')  # fmt: skip
    return _plain(tool, found.source("tools", str(i)), f"tools[{i}]")


def _plain(value: Any, code: int, where: str, depth: int = 0) -> Any:
    """A copy of plain types only: anything else has methods that a template could call."""
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        return Tracked(value, code)
    if depth > 100:
        raise UsageError("nested too deeply", field=where, remedy="100 levels are the most")
    if isinstance(value, Mapping):
        return {_plain(k, code, where, depth + 1): _plain(v, code, f"{where}.{k}", depth + 1)
                for k, v in value.items()}  # fmt: skip
    if isinstance(value, list | tuple):
        return [_plain(item, code, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise UsageError(f"a {type(value).__name__} cannot go into a template", field=where, value=value,
                     remedy="use text, numbers, lists and objects")  # fmt: skip


def _merge_system(found: Conversation) -> None:
    """Puts leading system messages in front of the first user message, with an empty line between. The merged text
    still knows which part is whose."""
    kept = list(found.messages)
    texts: list[str] = []
    while kept and kept[0]["role"] in ("system", "developer"):
        texts.append(_text(kept.pop(0)))
    first = next((i for i, message in enumerate(kept) if message["role"] == "user"), None)
    if not texts:
        return
    if first is None:
        raise UsageError('system="merge" needs a user message to put the system text in', field="messages",
                         remedy="add a user message")  # fmt: skip
    pieces = [part for text in texts for part in (text, "\n\n")]
    kept[first] = kept[first] | {"content": join_pieces([*pieces, _text(kept[first])])}
    found.messages, found.indices = kept, found.indices[len(texts) :]
    found.notes.append("the system text was put into the first user message")


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content", "")
    if isinstance(content, str):
        return content
    parts: list[Any] = [None]
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
    if not all(isinstance(part, str) for part in parts):
        raise UsageError('system="merge" takes text only', field="messages", remedy="write content as text")
    return join_pieces(parts)
