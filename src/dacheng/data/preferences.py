"""What people prefer: read from files, split without leaking prompts, and rendered as rows to learn from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dacheng.data.chat_layouts import Messages
from dacheng.data.chats import learnt_mask
from dacheng.data.objects import ObjectSpec, storable
from dacheng.data.order import permutation
from dacheng.data.pair_layouts import Comparison, MarkedReply, read_preference
from dacheng.data.pairs import PairRows, Row
from dacheng.data.sources import AnySpec, open_source
from dacheng.data.split import SplitConfig, split_of
from dacheng.errors import DachengError, UsageError
from dacheng.records import Drops, Record

if TYPE_CHECKING:
    from dacheng.text import ChatRenderer

Saying = Comparison | MarkedReply


@dataclass(frozen=True, slots=True)
class Preference:
    """One thing that people said of replies: a Comparison or a MarkedReply, with where it stands."""

    id: str
    said: Saying
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> Messages:
        return self.said.prompt

    @property
    def prompt_key(self) -> str:
        """Equal where the prompts are, but for the space around their texts."""
        return _key(self.said.prompt)

    @property
    def opening_key(self) -> str:
        """Of the prompt up to its first question: equal for conversations that only part later."""
        first = next((i for i, m in enumerate(self.said.prompt) if m.get("role") == "user"), len(self.said.prompt))
        return _key(self.said.prompt[: first + 1])


@dataclass(frozen=True, kw_only=True)
class PreferenceSpec(ObjectSpec):
    """Preferences in any layout of data.pair_layouts."""

    wanted = 'lines of {"prompt": …, "chosen": …, "rejected": …}, or another layout of preferences'

    def read(
        self, value: Mapping[str, Any], where: str, size: int, meta: dict[str, Any], drops: Drops
    ) -> tuple[list[Record], set[str]]:
        said, used = read_preference(value)
        name = str(value["id"]) if isinstance(value.get("id"), str | int) else where
        said = type(said)(*storable(said, where, drops))
        return [Record(id=name, messages=said.prompt, meta={**meta, "said": said})], used | {"id"}


def read_preferences(paths: Sequence[str | Path], drops: Drops) -> list[Preference]:
    """Of JSON (an array, or one object a line) or parquet, also packed. What is none is counted in `drops` with its
    reason. Raises DachengError when a file cannot be read, or nothing is left of it."""
    specs: list[AnySpec] = [PreferenceSpec(path=str(path)) for path in paths]
    found = []
    for record in open_source(specs, drops):
        meta = dict(record.meta)
        said = meta.pop("said")
        found.append(Preference(record.id, said, meta))
    return found


def split_preferences(
    preferences: Iterable[Preference], valid_fraction: float, salt: str = ""
) -> tuple[list[Preference], list[Preference]]:
    """(to train on, held out), decided by how the prompt begins: all that was said of one prompt, and of conversations
    that begin with the same question, lies on one side, whatever else is there and in whatever order. Raises UsageError
    for a fraction that is none."""
    config = SplitConfig(valid_fraction=valid_fraction, salt=salt)
    sides: tuple[list[Preference], list[Preference]] = ([], [])
    for preference in preferences:
        held_out = split_of(Record("", text=preference.opening_key), config) == "valid"
        sides[held_out].append(preference)
    return sides


def without_prompts(preferences: Iterable[Preference], others: Iterable[Preference], drops: Drops) -> list[Preference]:
    """Those that begin with another question than all of the others; the rest is counted as "prompt_is_held_out"."""
    taken = {preference.opening_key for preference in others}
    kept = []
    for preference in preferences:
        if preference.opening_key in taken:
            drops.drop("prompt_is_held_out", example=preference.id)
        else:
            kept.append(preference)
    return kept


# --- rows -------------------------------------------------------------------------------------------------------------
def pair_rows(
    preferences: Iterable[Preference], renderer: ChatRenderer, max_tokens: int, drops: Drops
) -> list[PairRows]:
    """Rows of the comparisons: of each, only what the replies say is learnt, the end of the turn included.

    Dropped and counted: marked replies (no pair), rows of more than max_tokens, what the template refuses. Raises
    DachengError when nothing is left.
    """
    found = []
    for preference in preferences:
        said = preference.said
        if isinstance(said, MarkedReply):
            drops.drop("a_marked_reply_is_no_pair", example=preference.id)
            continue
        rows = [
            _row(preference.id, said.prompt, reply, said.tools, renderer, max_tokens, drops)
            for reply in (said.chosen, said.rejected)
        ]
        if rows[0] is not None and rows[1] is not None:
            drops.keep(len(rows[0].ids) + len(rows[1].ids))
            found.append(PairRows(rows[0], rows[1], said.margin))
    return _not_empty(found, drops)


def marked_rows(
    preferences: Iterable[Preference], renderer: ChatRenderer, max_tokens: int, drops: Drops, seed: int = 0
) -> list[PairRows]:
    """Rows for KTO: each answer with its mark, and its prompt with the answer to another prompt, drawn by the seed
    (Ethayarajh et al. 2024, section 4.1). A comparison gives two answers, one of each kind.

    Dropped and counted as in `pair_rows`. Raises DachengError when nothing is left, UsageError where all answers are
    to one prompt.
    """
    marked = [(p, one) for p in preferences for one in _marked(p.said)]
    keys = [p.prompt_key for p, _ in marked]
    if len(set(keys)) < 2:
        raise UsageError("KTO compares with the answers to other prompts", field="data", value=len(set(keys)),
                         remedy="give answers to two prompts or more")  # fmt: skip
    order = permutation(len(marked), seed)
    place = np.argsort(order)
    found = []
    for number, (preference, one) in enumerate(marked):
        at = int(place[number])
        other = next(
            int(order[(at + step) % len(order)])
            for step in range(1, len(order))
            if keys[int(order[(at + step) % len(order)])] != keys[number]
        )
        rows = [
            _row(preference.id, one.prompt, reply, one.tools, renderer, max_tokens, drops)
            for reply in (one.reply, marked[other][1].reply)
        ]
        if rows[0] is not None and rows[1] is not None:
            drops.keep(len(rows[0].ids) + len(rows[1].ids))
            found.append(PairRows(rows[0], rows[1], desirable=one.desirable))
    return _not_empty(found, drops)


def _marked(said: Saying) -> list[MarkedReply]:
    if isinstance(said, MarkedReply):
        return [said]
    return [
        MarkedReply(said.prompt, said.chosen, True, said.tools),
        MarkedReply(said.prompt, said.rejected, False, said.tools),
    ]


def _row(
    name: str,
    prompt: Messages,
    reply: Messages,
    tools: list[dict[str, Any]] | None,
    renderer: ChatRenderer,
    max_tokens: int,
    drops: Drops,
) -> Row | None:
    """A conversation of which the reply is learnt, or None where it was dropped."""
    messages = [*prompt, *reply]
    try:
        rendered = renderer.render(messages, tools)
        mask = learnt_mask(rendered, [{**m, "weight": 0} for m in prompt] + list(reply))
    except DachengError as error:
        drops.drop(f"refused:{error.field or 'template'}", example=f"{name}: {error.problem}")
        return None
    if len(rendered.token_ids) > max_tokens:
        drops.drop("longer_than_max_tokens", len(rendered.token_ids), name)
        return None
    if not any(mask[1:]):
        drops.drop("assistant_says_nothing", len(rendered.token_ids), name)
        return None
    return Row(np.array(rendered.token_ids, np.int32), np.array(mask, np.bool_))


def _not_empty(found: list[PairRows], drops: Drops) -> list[PairRows]:
    if not found:
        raise DachengError(
            "no preference is left to learn from", field="data", value=dict(drops.dropped) or None,
            remedy='give JSON lines {"prompt": …, "chosen": …, "rejected": …}, or raise max_tokens',
        )  # fmt: skip
    return found


def _key(messages: Messages) -> str:
    said = [[m.get("role"), m["content"].strip() if isinstance(m.get("content"), str) else m] for m in messages]
    return json.dumps(said, ensure_ascii=False, sort_keys=True)
