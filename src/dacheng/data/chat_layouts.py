"""The layouts that conversations are published in, each as the one list of messages that the chat renderer takes.

- messages: OpenAI's {"messages": [{"role", "content", "tool_calls"?, "weight"?}], "tools"?}; also the older
  "function_call" and "functions", and LLaMA-Factory's parts {"type": "reasoning" | "tool_call" | "text", "value"}
- sharegpt: {"conversations": [{"from": "human" | "gpt" | "function_call" | "observation" | …, "value"}], "system"?,
  "tools"?: JSON text}
- alpaca: {"instruction", "input"?, "output", "system"?, "history"?: [[question, answer], …]} (Taori et al. 2023)
- seed_tasks: {"instruction", "instances": [{"input", "output"}, …]}, a conversation each (Wang et al. 2023)
- prompt: {"prompt", "completion" | "response"}, both text or both messages
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Layout = Literal["auto", "messages", "sharegpt", "alpaca", "seed_tasks", "prompt"]
Messages = list[dict[str, Any]]

_ROLES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "function": "tool", "observation": "tool", "tool_response": "tool",
    "function_response": "tool",
}  # fmt: skip
_CALLS = ("function_call", "tool_call", "tool_calls")  # as roles: the assistant calls a tool
_MEDIA = ("images", "image", "videos", "audios", "audio")


class Chat(NamedTuple):
    """messages: as ChatRenderer takes them. tools: JSON schemas as OpenAI wraps them, or None."""

    messages: Messages
    tools: list[dict[str, Any]] | None = None


class NoChat(Exception):
    """Why an object is no conversation of a layout: the reason under which it is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def layout_of(value: Mapping[str, Any]) -> Layout | None:
    """The layout that an object's fields say, None for none."""
    if value.get("messages") is not None:
        return "messages"
    if value.get("conversations") is not None or value.get("conversation") is not None:
        return "sharegpt"
    if "instruction" in value:
        return "seed_tasks" if "instances" in value else "alpaca" if "output" in value else None
    return "prompt" if "prompt" in value and ("completion" in value or "response" in value) else None


def read_chat(value: Mapping[str, Any], layout: Layout = "auto") -> tuple[list[Chat], set[str]]:
    """(the conversations of an object, the names of the fields they were made of). Raises NoChat."""
    known = layout_of(value) if layout == "auto" else layout
    if known is None:
        raise NoChat("missing_field:messages")
    if any(value.get(name) for name in _MEDIA):
        raise NoChat("has_images_or_sound")
    return _LAYOUTS[known](value)


# --- messages, sharegpt -----------------------------------------------------------------------------------------------
def _listed(value: Mapping[str, Any], names: Sequence[str]) -> tuple[list[Chat], set[str]]:
    name = next((name for name in names if value.get(name) is not None), None)
    if name is None:
        raise NoChat(f"missing_field:{names[0]}")
    turns = value[name]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise NoChat(f"not_messages:{name}")
    found: Messages = []
    if value.get("system"):
        found.append({"role": "system", "content": _text(value["system"], "system")})
    for turn in turns:
        _add(found, _message(turn, name))
    tools = value.get("tools") if value.get("tools") is not None else value.get("functions")
    return [Chat(found, read_tools(tools))], {name, "system", "tools", "functions"}


def _message(turn: Mapping[str, Any], name: str) -> dict[str, Any]:
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str):
        raise NoChat(f"not_messages:{name}")
    content = turn.get("content", turn.get("value"))
    if role in _CALLS:
        return {"role": "assistant", "content": "", "tool_calls": _calls(content)}
    made = {
        key: item for key, item in turn.items() if key not in ("from", "value", "function_call") and item is not None
    }
    made |= {"role": _ROLES.get(role, role)}
    if content is not None:
        made["content"] = content
    if isinstance(content, list):
        made |= _parts(content)
    if turn.get("function_call"):
        made["tool_calls"] = [*made.get("tool_calls", []), *_calls(turn["function_call"])]
    if made.get("tool_calls"):
        made.setdefault("content", "")  # null in OpenAI's files: many templates take it for text
    return made


def _parts(content: list[Any]) -> dict[str, Any]:
    """A content of parts as plain fields: text joined, thoughts and calls where the renderer looks for them."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        said = part.get("text", part.get("value")) if isinstance(part, Mapping) else None
        if kind in ("text", "reasoning", "refusal") and isinstance(part, Mapping):
            said = part.get("refusal", said)
            (thoughts if kind == "reasoning" else texts).append(_text(said, "content"))
        elif kind in ("tool_call", "tool_calls"):
            calls += _calls(said)
        else:
            raise NoChat(f"not_text:{kind}" if isinstance(kind, str) and len(kind) < 40 else "not_text")
    found: dict[str, Any] = {"content": "".join(texts)}
    if thoughts:
        found["reasoning_content"] = "".join(thoughts)
    if calls:
        found["tool_calls"] = calls
    return found


def _add(found: Messages, message: dict[str, Any]) -> None:
    """What the assistant says and the calls that follow it at once are one message, as OpenAI has it."""
    last = found[-1] if found else {}
    bare_calls = message["role"] == "assistant" and "tool_calls" in message and not message.get("content")
    if bare_calls and last.get("role") == "assistant" and last.get("weight") == message.get("weight"):
        last["tool_calls"] = [*last.get("tool_calls", []), *message["tool_calls"]]
    else:
        found.append(message)


def _calls(value: Any) -> list[dict[str, Any]]:
    """{"name", "arguments"}, a list of them, or the JSON text of either, wrapped as OpenAI does."""
    value = _parsed(value, "bad_tool_call")
    found = []
    for call in value if isinstance(value, list) else [value]:
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise NoChat("bad_tool_call")
        arguments = inner.get("arguments", inner.get("parameters", {}))
        arguments = _parsed(arguments, "bad_tool_call") if isinstance(arguments, str) else arguments
        if not isinstance(arguments, Mapping):
            raise NoChat("bad_tool_call")
        made = {"type": "function", "function": {"name": inner["name"], "arguments": dict(arguments)}}
        found.append({"id": call["id"], **made} if isinstance(call.get("id"), str) else made)
    return found


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """A list of tools or its JSON text, each wrapped as {"type": "function", "function"}; None where there are none.
    Raises NoChat."""
    value = _parsed(value, "bad_tools") if isinstance(value, str) and value.strip() else value
    if not value:
        return None
    if not isinstance(value, list):
        raise NoChat("bad_tools")
    found: list[dict[str, Any]] = []
    for tool in value:
        if not isinstance(tool, Mapping) or not ("function" in tool or isinstance(tool.get("name"), str)):
            raise NoChat("bad_tools")
        found.append(dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)})
    return found


def _parsed(value: Any, reason: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise NoChat(reason) from None


# --- alpaca, seed tasks, prompt and completion ------------------------------------------------------------------------
def _alpaca(value: Mapping[str, Any]) -> tuple[list[Chat], set[str]]:
    used = {"instruction", "input", "output", "system", "history"}
    return [_asked(value, value.get("input"), value.get("output"))], used


def _seed_tasks(value: Mapping[str, Any]) -> tuple[list[Chat], set[str]]:
    instances = value.get("instances")
    if not isinstance(instances, list) or not all(isinstance(one, Mapping) for one in instances):
        raise NoChat("field_not_instances:instances")
    found = [_asked(value, one.get("input"), one.get("output")) for one in instances]
    return found, {"instruction", "instances", "system"}


def _asked(value: Mapping[str, Any], given: Any, reply: Any) -> Chat:
    """The input stands under the instruction, with an empty line between."""
    found: Messages = []
    if value.get("system"):
        found.append({"role": "system", "content": _text(value["system"], "system")})
    for pair in _history(value.get("history")):
        found += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question = _text(value.get("instruction"), "instruction")
    if given is not None and _text(given, "input").strip():
        question = f"{question}\n\n{given}" if question.strip() else given
    reply = _text(reply, "output")
    if not reply.strip():
        raise NoChat("empty_reply")
    return Chat([*found, {"role": "user", "content": question}, {"role": "assistant", "content": reply}])


def _history(value: Any) -> list[list[str]]:
    pairs = value or []
    right = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs
    )
    if not right:
        raise NoChat("field_not_pairs:history")
    return pairs


def _prompt(value: Mapping[str, Any]) -> tuple[list[Chat], set[str]]:
    name = "completion" if "completion" in value else "response"
    asked, said = value.get("prompt"), value.get(name)
    used = {"prompt", name, "system", "tools"}
    if isinstance(asked, list) and isinstance(said, list):
        return _listed({**value, "messages": [*asked, *said]}, ("messages",))[0], used
    reply = _text(said, name)
    if not reply.strip():
        raise NoChat("empty_reply")
    turns = [{"role": "user", "content": _text(asked, "prompt")}, {"role": "assistant", "content": reply}]
    return _listed({**value, "messages": turns}, ("messages",))[0], used


def _text(value: Any, name: str) -> str:
    if value is None:
        raise NoChat(f"missing_field:{name}")
    if not isinstance(value, str):
        raise NoChat(f"field_not_text:{name}")
    return value


_LAYOUTS: dict[str, Callable[[Mapping[str, Any]], tuple[list[Chat], set[str]]]] = {
    "messages": lambda value: _listed(value, ("messages",)),
    "sharegpt": lambda value: _listed(value, ("conversations", "conversation")),
    "alpaca": _alpaca,
    "seed_tasks": _seed_tasks,
    "prompt": _prompt,
}
