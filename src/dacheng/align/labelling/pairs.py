"""Pairs of replies to compare, read from files: two replies a pair, or several of which each two are one."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dacheng.data.chat_layouts import Messages, NoChat
from dacheng.data.objects import ObjectSpec, storable
from dacheng.data.pair_layouts import Comparison, read_preference
from dacheng.data.sources import AnySpec, open_source
from dacheng.errors import DachengError
from dacheng.records import Drops, Record

MOST_REPLIES = 9  # to one prompt: 36 pairs, as many as InstructGPT's labellers ranked (Ouyang et al. 2022, section 3.5)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies, a and b, to a prompt. id: a hash of all three, so that labels outlive the order of a file.
    said: "a" or "b" where the file itself says which is preferred, else None; an annotator is not shown it.
    tools: JSON schemas that the prompt came with."""

    id: str
    prompt: Messages
    a: Messages
    b: Messages
    said: str | None = None
    tools: list[dict[str, Any]] | None = None

    def reply(self, name: str) -> Messages:
        return self.a if name == "a" else self.b


@dataclass(frozen=True, kw_only=True)
class _PairSpec(ObjectSpec):
    """{"responses": [x, y, …]} or {"a", "b"} beside a prompt, or a layout of data.pair_layouts."""

    wanted = 'lines of {"prompt": …, "responses": [one, other]}, or preferences'

    def read(
        self, value: Mapping[str, Any], where: str, size: int, meta: dict[str, Any], drops: Drops
    ) -> tuple[list[Record], set[str]]:
        asked, own = _as_preferences(value)
        found: list[Record] = []
        used = {"id"}
        for one in asked:
            try:
                said, names = read_preference(one)
                if not isinstance(said, Comparison):
                    raise NoChat("a_marked_reply_is_no_pair")
            except NoChat as error:
                drops.drop(error.reason, size, where)
                continue
            used |= names | own
            kept = storable(said[:4], where, drops)
            found.append(Record(id=where, messages=kept[0], meta={"pair": kept, "said": None if own else "a"}))
        return found, used


def _as_preferences(value: Mapping[str, Any]) -> tuple[list[dict[str, Any]], set[str]]:
    """An object for each pair, in the words of pair_layouts, and the names of the fields that hold the replies; none
    where it is in these words already."""
    replies = value.get("responses")
    own = {"responses"}
    if replies is None and "a" in value and "b" in value:
        replies, own = [value["a"], value["b"]], {"a", "b"}
    if replies is None:
        return [dict(value)], set()
    if not isinstance(replies, list) or not 2 <= len(replies) <= MOST_REPLIES:
        raise NoChat(f"not_2_to_{MOST_REPLIES}_replies")
    rest = {name: item for name, item in value.items() if name not in own}
    return [{**rest, "chosen": a, "rejected": b} for a, b in itertools.combinations(replies, 2)], own


def read_pairs(paths: Sequence[str | Path], drops: Drops) -> list[Pair]:
    """Of JSON (an array, or one object a line) or parquet, also packed. What is no pair, or the same again, is counted
    in `drops`. Raises DachengError when a file cannot be read, or no pair is left."""
    specs: list[AnySpec] = [_PairSpec(path=str(path)) for path in paths]
    found: dict[str, Pair] = {}
    for record in open_source(specs, drops):
        prompt, a, b, tools = record.meta["pair"]
        name = hashlib.sha256(json.dumps([prompt, a, b], ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]
        if name in found:
            drops.drop("the_same_pair_again", example=record.id)
            continue
        found[name] = Pair(name, prompt, a, b, record.meta["said"], tools)
        drops.keep()
    if not found:
        raise DachengError("there is no pair to compare", field="FILE", value=[str(path) for path in paths],
                           remedy='give lines of {"prompt": …, "responses": [one, other]}')  # fmt: skip
    return list(found.values())


def spoken(messages: Messages) -> str:
    """What messages say, as people read it: calls and thoughts included, the role before each but the first."""
    parts = []
    for number, message in enumerate(messages):
        said = [str(message.get("reasoning_content") or ""), _content(message.get("content"))]
        said += [json.dumps(call.get("function", call), ensure_ascii=False) for call in message.get("tool_calls") or []]
        text = "\n".join(part for part in said if part)
        parts.append(text if number == 0 else f"[{message.get('role')}] {text}")
    return "\n\n".join(parts)


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content)
