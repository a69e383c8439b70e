"""Conversations as rows to learn from: ids by the one chat renderer, targets only where the assistant speaks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from dacheng.data.batches import PackedSource
from dacheng.data.chat_layouts import Layout, read_chat
from dacheng.data.objects import ObjectSpec, storable
from dacheng.data.packing import pack
from dacheng.data.shards import TokenShard, TokenShards
from dacheng.data.sources import AnySpec, open_source
from dacheng.errors import DachengError
from dacheng.records import Drops, Record

if TYPE_CHECKING:
    from dacheng.text import ChatRenderer, Rendered

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


Learn = Literal["all", "last"]
"""Which of the assistant's turns are learnt: all of them, or the last of each conversation."""


@dataclass(frozen=True, kw_only=True)
class ChatSpec(ObjectSpec):
    """Conversations in any layout of data.chat_layouts; auto goes by each object's fields."""

    layout: Layout = "auto"
    wanted = 'lines of {"messages": [{"role": "user", …}, {"role": "assistant", …}]}, or another of its layouts'

    def read(
        self, value: Mapping[str, Any], where: str, size: int, meta: dict[str, Any], drops: Drops
    ) -> tuple[list[Record], set[str]]:
        chats, used = read_chat(value, self.layout)
        found = []
        for number, chat in enumerate(chats, 1):
            name = where if len(chats) == 1 else f"{where}#{number}"
            own = meta | ({} if chat.tools is None else {"tools": chat.tools})
            found.append(Record(id=name, messages=storable(chat.messages, name, drops), meta=own))
        return found, used


def read_chats(paths: Sequence[str | Path], drops: Drops, layout: Layout = "auto") -> Iterable[Record]:
    """Records of conversations in files of JSON (an array, or one a line) or parquet: OpenAI's messages, ShareGPT,
    Alpaca, seed tasks, prompt and completion (see data.chat_layouts). What is none is counted in `drops`."""
    specs: list[AnySpec] = [ChatSpec(path=str(path), layout=layout) for path in paths]
    return open_source(specs, drops)


def chat_shards(
    records: Iterable[Record],
    renderer: ChatRenderer,
    *,
    context_length: int,
    drops: Drops | None = None,
    learn: Learn = "all",
) -> TokenShards:
    """One conversation a document, with `targets` set for what the assistant says, the end of its turns included: a
    model that never learns that does not stop.

    Dropped and counted: a conversation of more than context_length tokens (cut, it would lose its question), one in
    which the assistant says nothing that is to be learnt, one that the template refuses. Raises DachengError when
    nothing is left.
    """
    return shards_of(rendered_chats(records, renderer, context_length, Drops() if drops is None else drops, learn))


def rendered_chats(
    records: Iterable[Record], renderer: ChatRenderer, context_length: int, drops: Drops, learn: Learn = "all"
) -> list[tuple[Ids, Mask]]:
    """Ids of each conversation, and which of them are learnt (see learnt_mask and chat_shards)."""
    found: list[tuple[Ids, Mask]] = []
    for record in records:
        rendered = _rendered(record, renderer, context_length, drops, learn)
        if rendered is not None:
            found.append((np.array(rendered[0], np.int32), np.array(rendered[1], np.bool_)))
            drops.keep(len(rendered[0]))
    if not found:
        raise DachengError(
            "no conversation is left to learn from", field="data", value=dict(drops.dropped) or None,
            remedy='give JSON lines {"messages": [{"role": "user", …}, {"role": "assistant", …}]}; '
            "dacheng align show FILE shows what becomes of them",
        )  # fmt: skip
    return found


def shards_of(documents: Sequence[tuple[Ids, Mask]]) -> TokenShards:
    """Ids and targets in memory, as the one shard of their name."""
    tokens, targets = (np.concatenate([document[part] for document in documents]) for part in (0, 1))
    lengths = np.array([len(ids) for ids, _ in documents], np.int64)
    digest = hashlib.sha256()
    for array in (tokens, targets, lengths):
        digest.update(array.tobytes())
    starts = np.cumsum(lengths) - lengths
    return TokenShards((TokenShard(Path("chats"), tokens, starts, lengths, digest.hexdigest(), targets),))


def learnt_mask(rendered: Rendered, messages: Sequence[Mapping[str, Any]], learn: Learn = "all") -> list[int]:
    """rendered.mask, less the assistant's turns that are not to be learnt: those with "weight": 0 (as in OpenAI's
    fine-tuning files), and with learn="last" all but the last. 1 or 0 for each token."""
    turns = rendered.assistant_spans
    asked = turns[-1:] if learn == "last" else turns
    kept = [turn for turn in asked if not _weightless(rendered, messages, turn)]
    if len(kept) == len(turns):
        return rendered.mask
    mask = [0] * len(rendered.token_ids)
    for at, (start, end) in enumerate(rendered.offsets):
        if rendered.mask[at] and any(start < last and first < end for first, last in kept):
            mask[at] = 1
    return mask


def _weightless(rendered: Rendered, messages: Sequence[Mapping[str, Any]], turn: tuple[int, int]) -> bool:
    """Whether a message that stands in this turn has the weight 0."""
    there = [span.index for span in rendered.spans if span.start < turn[1] and turn[0] < span.end]
    return any(messages[i].get("weight") == 0 for i in there)


def _rendered(
    record: Record, renderer: ChatRenderer, context_length: int, drops: Drops, learn: Learn
) -> tuple[list[int], list[int]] | None:
    """Ids and mask, or None where the conversation was dropped."""
    if record.messages is None:
        drops.drop("no_messages", example=record.id)
        return None
    try:
        rendered = renderer.render(record.messages, record.meta.get("tools"))
        mask = learnt_mask(rendered, record.messages, learn)
    except DachengError as error:
        drops.drop(f"refused:{error.field or 'template'}", example=f"{record.id}: {error.problem}")
        return None
    if len(rendered.token_ids) > context_length:
        drops.drop("longer_than_context", len(rendered.token_ids), record.id)
        return None
    if not any(mask[1:]):  # nothing comes before the first token to predict it from
        drops.drop("assistant_says_nothing", len(rendered.token_ids), record.id)
        return None
    return rendered.token_ids, mask


def chat_source(
    paths: Sequence[str | Path],
    renderer: ChatRenderer,
    *,
    context_length: int,
    batch_rows: int,
    micro_batches: int = 1,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> tuple[PackedSource, Drops]:
    """Rows of whole conversations, several to a row where they fit, and what was dropped on the way (see chat_shards).

    Attention and positions begin anew with each conversation: packed equals separate."""
    drops = Drops()
    shards = chat_shards(read_chats(paths, drops), renderer, context_length=context_length, drops=drops)
    source = PackedSource(shards, pack(shards, context_length), batch_rows, micro_batches, seed, rank, world)
    return source, drops
