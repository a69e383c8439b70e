"""The layouts that preferences are published in, each as a prompt with two replies, or with one that is marked.

Pairs: `chosen` and `rejected` beside
- prompt: {"prompt" | "question"}, text or messages, "system"?
- alpaca: {"instruction", "input"?, …} as in chat_layouts
- sharegpt, messages: {"conversations" | "messages"}, the replies
  {"from", "value"} or {"role", "content"} (LLaMA-Factory)
- messages: no prompt, both replies whole conversations that begin alike (TRL)
- hh: no prompt, both replies transcripts "\\n\\nHuman: …\\n\\nAssistant: …" (Bai et al. 2022)

with "margin", or "score_chosen" and "score_rejected", where people said by how much.

Marked replies: any layout of chat_layouts with "label", "kto_tag" or "desirable", true or false.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from dacheng.data.chat_layouts import Chat, Messages, NoChat, read_chat

_MARKS = ("label", "kto_tag", "desirable")
_SCORES = ("score_chosen", "score_rejected")
_HH_TURN = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


class Comparison(NamedTuple):
    """The chosen reply to a prompt was preferred to the rejected one. A reply is what follows the prompt: a message of
    the assistant, or several turns that begin with one. margin: by how much, None where nobody said."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    tools: list[dict[str, Any]] | None = None
    margin: float | None = None


class MarkedReply(NamedTuple):
    """One reply to a prompt, and whether it is wanted."""

    prompt: Messages
    reply: Messages
    desirable: bool
    tools: list[dict[str, Any]] | None = None


def read_preference(value: Mapping[str, Any]) -> tuple[Comparison | MarkedReply, set[str]]:
    """What an object says, and the names of the fields that say it. Raises NoChat with the reason."""
    if value.get("chosen") is not None and value.get("rejected") is not None:
        found, used = _comparison(value)
        if found.chosen == found.rejected:
            raise NoChat("both_replies_are_the_same")
        return found, used
    mark = next((name for name in _MARKS if isinstance(value.get(name), bool)), None)
    if mark is None:
        near = next((name for name in _MARKS if value.get(name) is not None), None)
        raise NoChat(f"field_not_true_or_false:{near}" if near else "missing_field:chosen")
    chats, used = read_chat({name: item for name, item in value.items() if name != mark})
    if len(chats) > 1:
        raise NoChat("several_replies_with_one_mark")
    messages = chats[0].messages
    return MarkedReply(messages[:-1], _reply(messages, len(messages) - 1), value[mark], chats[0].tools), used | {mark}


def _comparison(value: Mapping[str, Any]) -> tuple[Comparison, set[str]]:
    chosen, rejected = value["chosen"], value["rejected"]
    if type(chosen) is not type(rejected):
        raise NoChat("replies_of_two_kinds")
    one, used = _conversation(value, chosen)
    other, more = _conversation(value, rejected)
    prompt = _shared(one.messages, other.messages)
    better, worse = (_reply(chat.messages, prompt) for chat in (one, other))
    found = Comparison(one.messages[:prompt], better, worse, one.tools, _margin(value))
    return found, used | more | {"chosen", "rejected", "margin", *_SCORES}


def _conversation(value: Mapping[str, Any], reply: Any) -> tuple[Chat, set[str]]:
    """The prompt with one of the replies, by the fields that hold the prompt."""
    if isinstance(reply, str) and "instruction" in value:
        (chat,), used = read_chat({**_without_replies(value), "output": reply}, "alpaca")
        return chat, used - {"output"}
    asked = next((name for name in ("prompt", "question") if value.get(name) is not None), None)
    listed = next((name for name in ("conversations", "messages") if value.get(name) is not None), None)
    if isinstance(reply, str) and asked is None and listed is None:
        if not _HH_TURN.match(reply):
            raise NoChat("missing_field:prompt")
        return Chat(_transcript(reply)), set()
    said = [{"role": "assistant", "content": reply}] if isinstance(reply, str) else reply
    said = [said] if isinstance(said, Mapping) else said
    if asked is None and listed is None:
        (chat,), used = read_chat({"messages": said, **_kept(value)}, "messages")
        return chat, used - {"messages"}
    if listed is not None and isinstance(value[listed], list) and isinstance(said, list):
        (chat,), used = read_chat({"conversations": [*value[listed], *said], **_kept(value)}, "sharegpt")
        return chat, (used - {"conversations"}) | {listed}
    if asked is None:
        raise NoChat(f"not_messages:{listed}")
    given = value[asked]
    before = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(before, list) or not isinstance(said, list):
        raise NoChat(f"not_messages:{asked}")
    if said[: len(before)] == before and isinstance(given, list):
        before = []  # replies that repeat the prompt (UltraFeedback)
    elif isinstance(given, str) and len(said) > 1:
        before = []
    (chat,), used = read_chat({"messages": [*before, *said], **_kept(value)}, "messages")
    return chat, (used - {"messages"}) | {asked}


def _kept(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value[name] for name in ("system", "tools") if value.get(name) is not None}


def _without_replies(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name not in ("chosen", "rejected", "output")}


def _transcript(text: str) -> Messages:
    """Turns of "\\n\\nHuman: …\\n\\nAssistant: …"."""
    turns = list(_HH_TURN.finditer(text))
    ends = [turn.start() for turn in turns[1:]] + [len(text)]
    return [
        {"role": _HH_ROLES[turn[1]], "content": text[turn.end() : end].strip()} for turn, end in zip(turns, ends)
    ]  # fmt: skip


def _shared(one: Messages, other: Messages) -> int:
    """How many messages both begin with. Raises NoChat where the replies answer different questions."""
    n = 0
    while n < min(len(one), len(other)) and one[n] == other[n]:
        n += 1
    if n == len(one) == len(other):
        raise NoChat("both_replies_are_the_same")
    if n in (len(one), len(other)):
        raise NoChat("one_reply_begins_the_other")
    if one[n].get("role") != "assistant" or other[n].get("role") != "assistant":
        raise NoChat("the_prompts_differ")
    return n


def _reply(messages: Messages, start: int) -> Messages:
    reply = messages[start:]
    if not reply or reply[0].get("role") != "assistant":
        raise NoChat("no_reply_of_the_assistant")
    said = [m for m in reply if m.get("role") == "assistant"]
    if not any((isinstance(m.get("content"), str) and m["content"].strip()) or m.get("tool_calls") for m in said):
        raise NoChat("empty_reply")
    if start == 0:
        raise NoChat("empty_prompt")
    return reply


def _margin(value: Mapping[str, Any]) -> float | None:
    scores = [value.get(name) for name in _SCORES]
    found = value.get("margin")
    if found is None and all(_is_number(score) for score in scores):
        found = scores[0] - scores[1]  # type: ignore[operator]
    if found is None:
        return None
    if not _is_number(found):
        raise NoChat("field_not_a_number:margin")
    return float(found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
