"""What is answered: prompts as token ids, with what a reward needs to know about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.data.chat_layouts import NoChat
from dacheng.data.objects import ObjectSpec
from dacheng.data.sources import AnySpec, open_source
from dacheng.engine.boundary import encode_prompt
from dacheng.errors import DachengError
from dacheng.records import Drops, Record

if TYPE_CHECKING:
    from dacheng.text import ChatRenderer, Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """token_ids: what the model goes on from. text: as a reward sees it; of a conversation, `messages` beside it. meta:
    the record's other fields (answer, tests, …)."""

    id: str
    token_ids: tuple[int, ...]
    text: str
    messages: list[dict[str, Any]] | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PromptSpec(ObjectSpec):
    """JSON objects of {"prompt": text} or {"messages": […]}; "meta" and all other fields go into the record's meta."""

    wanted = 'JSON lines of {"prompt": "…", "meta": {…}} or {"messages": […]}'

    def read(
        self, value: Mapping[str, Any], where: str, size: int, meta: dict[str, Any], drops: Drops
    ) -> tuple[list[Record], set[str]]:
        text, messages, own = value.get("prompt"), value.get("messages"), value.get("meta") or {}
        if (text is None) == (messages is None) or not isinstance(own, Mapping):
            raise NoChat("not_a_prompt")
        rest = {name: item for name, item in value.items() if name not in ("prompt", "messages", "meta")}
        found, used = {**rest, **own}, set(value)
        if text is not None and isinstance(text, str) and text:
            return [Record(id=where, text=text, meta=found)], used
        if isinstance(messages, list) and messages:
            if not all(isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in messages):
                raise NoChat("not_messages:messages")
            return [Record(id=where, messages=messages, meta=found)], used
        raise NoChat("empty_prompt")


def read_prompts(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    *,
    renderer: ChatRenderer | None = None,
    longest: int | None = None,
    drops: Drops | None = None,
) -> list[Prompt]:
    """Prompts of JSON lines. A text is encoded as texts of the family begin; messages go through the chat template, up
    to the header of the assistant's turn.

    longest: tokens; a longer prompt is dropped and counted, as is what is no prompt, and what the template refuses.
    Raises DachengError when nothing is left, or there are messages and no renderer.
    """
    drops = Drops() if drops is None else drops
    specs: list[AnySpec] = [PromptSpec(path=str(path), kind="jsonl") for path in paths]
    found = []
    for record in open_source(specs, drops):
        try:
            prompt = _prompt(record, tokenizer, renderer)
        except DachengError as error:
            if renderer is None:
                raise
            drops.drop(f"refused:{error.field or 'template'}", example=f"{record.id}: {error.problem}")
            continue
        if longest is not None and len(prompt.token_ids) > longest:
            drops.drop("longer_than_context", len(prompt.token_ids), record.id)
            continue
        drops.keep(len(prompt.token_ids))
        found.append(prompt)
    if not found:
        raise DachengError(
            "no prompt is left to answer", field="prompts", value=dict(drops.dropped) or None,
            remedy='give JSON lines of {"prompt": "…", "meta": {…}} or {"messages": […]}',
        )  # fmt: skip
    return found


def _prompt(record: Record, tokenizer: Tokenizer, renderer: ChatRenderer | None) -> Prompt:
    if record.messages is None:
        assert record.text is not None
        return Prompt(record.id, tuple(encode_prompt(tokenizer, record.text)), record.text, None, record.meta)
    if renderer is None:
        raise DachengError("conversations need a chat template", field=record.id, remedy="a model that has one")
    rendered = renderer.render(record.messages, record.meta.get("tools"), add_generation_prompt=True)
    last = record.messages[-1].get("content")
    text = last if isinstance(last, str) else json.dumps(last, ensure_ascii=False)
    return Prompt(record.id, tuple(rendered.token_ids), text, record.messages, record.meta)


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """sha256 of ids and what the rewards are told."""
    total = hashlib.sha256()
    for prompt in prompts:
        told = [prompt.id, prompt.token_ids, prompt.text, prompt.messages, prompt.meta]
        total.update(json.dumps(told, sort_keys=True, default=str).encode())
    return total.hexdigest()
