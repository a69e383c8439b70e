"""Conversations as rows to learn from: ids by the one chat renderer, targets only where the assistant speaks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dacheng.data.batches import PackedSource
from dacheng.data.packing import pack
from dacheng.data.shards import TokenShard, TokenShards
from dacheng.data.sources import AnySpec, SourceSpec, open_source
from dacheng.errors import DachengError
from dacheng.records import Drops, Record

if TYPE_CHECKING:
    from dacheng.text import ChatRenderer

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


def read_chats(paths: Sequence[str | Path], drops: Drops) -> Iterable[Record]:
    """Records of JSON lines {"messages": […], "tools"?: […]}, as OpenAI's fine-tuning takes them."""
    specs: list[AnySpec] = [
        SourceSpec(path=str(path), messages_field="messages", keep_fields=("tools",)) for path in paths
    ]
    return open_source(specs, drops)


def chat_shards(
    records: Iterable[Record], renderer: ChatRenderer, *, context_length: int, drops: Drops | None = None
) -> TokenShards:
    """One conversation a document, with `targets` set for what the assistant says, the end of its turns included: a
    model that never learns that does not stop.

    Dropped and counted: a conversation of more than context_length tokens (cut, it would lose its question), one in
    which the assistant says nothing, one that the template refuses. Raises DachengError when nothing is left.
    """
    return shards_of(rendered_chats(records, renderer, context_length, Drops() if drops is None else drops))


def rendered_chats(
    records: Iterable[Record], renderer: ChatRenderer, context_length: int, drops: Drops
) -> list[tuple[Ids, Mask]]:
    """Ids of each conversation, and which of them the assistant says. See chat_shards."""
    found: list[tuple[Ids, Mask]] = []
    for record in records:
        rendered = _rendered(record, renderer, context_length, drops)
        if rendered is not None:
            found.append((np.array(rendered[0], np.int32), np.array(rendered[1], np.bool_)))
            drops.keep(len(rendered[0]))
    if not found:
        raise DachengError(
            "no conversation is left to learn from", field="data", value=dict(drops.dropped) or None,
            remedy='give JSON lines {"messages": [{"role": "user", …}, {"role": "assistant", …}]}',
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


def _rendered(
    record: Record, renderer: ChatRenderer, context_length: int, drops: Drops
) -> tuple[list[int], list[int]] | None:
    """Ids and mask, or None where the conversation was dropped."""
    if record.messages is None:
        drops.drop("no_messages", example=record.id)
        return None
    try:
        rendered = renderer.render(record.messages, record.meta.get("tools"))
        mask = rendered.mask
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
