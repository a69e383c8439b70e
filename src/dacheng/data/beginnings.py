"""Conversations that begin alike, put into rows so that what they share is there, and computed, once.

Several questions about one text are trained on with the text in the row a single time. Loss and gradients are those of
the conversations each in full: see nn.branches. The idea is that of prefix sharing in serving (Zheng et al. 2023,
RadixAttention), with one level.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dacheng.data.batches import PackedSource, TokenBatch
from dacheng.data.chats import Ids, Learn, Mask, rendered_chats, shards_of
from dacheng.data.packing import pack
from dacheng.records import Drops, Record

if TYPE_CHECKING:
    from dacheng.text import ChatRenderer

MIN_SHARED = 48  # tokens: less is the system's message that all have, and would tie all to one row
MAX_BRANCHES = 8  # so that a batch still holds more than one text


@dataclass(frozen=True, slots=True)
class Tree:
    """tokens, targets, branches (0: the beginning), positions: (T,)."""

    tokens: Ids
    targets: Mask
    branches: Ids
    positions: Ids


def trees(chats: Sequence[tuple[Ids, Mask]], most_tokens: int) -> list[Tree]:
    """The conversations (ids, what the assistant says), those that begin alike as one tree of at most `most_tokens`.

    In the order of their ids. What is shared ends at least one token before the first that is learnt, in each: the
    last token of a beginning has several successors, and predicts none of them.
    """
    order = sorted(range(len(chats)), key=lambda i: chats[i][0].tobytes())
    found: list[Tree] = []
    group: list[int] = []
    shared = 0
    for i in order:
        ids, mask = chats[i]
        room = int(mask.argmax()) - 1
        if group and len(group) < MAX_BRANCHES:
            common = min(shared, room, _common(chats[group[-1]][0], ids))
            bigger = sum(len(chats[j][0]) - common for j in [*group, i]) + common
            if common >= max(MIN_SHARED, len(ids) // 2) and bigger <= most_tokens:
                group.append(i)
                shared = common
                continue
        if group:
            found.append(_tree([chats[j] for j in group], shared if len(group) > 1 else 0))
        group, shared = [i], room
    if group:
        found.append(_tree([chats[j] for j in group], shared if len(group) > 1 else 0))
    return found


def _common(a: Ids, b: Ids) -> int:
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    return int(different.argmax()) if different.any() else n


def _tree(chats: Sequence[tuple[Ids, Mask]], shared: int) -> Tree:
    first = chats[0]
    if not shared:
        n = len(first[0])
        return Tree(first[0], first[1], np.zeros(n, np.int32), np.arange(n, dtype=np.int32))
    parts = [(first[0][:shared], np.zeros(shared, np.bool_), 0)]
    parts += [(ids[shared:], mask[shared:], number) for number, (ids, mask) in enumerate(chats, 1)]
    starts = [0, *[shared] * len(chats)]
    return Tree(
        np.concatenate([ids for ids, _, _ in parts]),
        np.concatenate([mask for _, mask, _ in parts]),
        np.concatenate([np.full(len(ids), number, np.int32) for ids, _, number in parts]),
        np.concatenate([np.arange(at, at + len(ids), dtype=np.int32) for at, (ids, _, _) in zip(starts, parts)]),
    )


class TreeSource(PackedSource):
    """A PackedSource whose documents are trees, a row a micro-batch. conversations: how many they stand for; saved:
    tokens that are there once instead of several times."""

    def __init__(self, found: Sequence[Tree], context_length: int, batch_rows: int, seed: int = 0) -> None:
        shards = shards_of([(tree.tokens, tree.targets) for tree in found])
        super().__init__(shards, pack(shards, context_length), batch_rows, batch_rows, seed)
        self._branches = np.concatenate([tree.branches for tree in found])
        self._positions = np.concatenate([tree.positions for tree in found])
        digest = hashlib.sha256(self.fingerprint.encode() + self._branches.tobytes() + self._positions.tobytes())
        self.fingerprint = digest.hexdigest()
        branches = [max(1, int(tree.branches.max())) for tree in found]
        self.conversations = sum(branches)
        self.saved = sum((n - 1) * int((tree.branches == 0).sum()) for n, tree in zip(branches, found))

    def read(self, rows: list[int]) -> TokenBatch:
        (row,) = rows
        batch, index = super().read(rows), self.packing
        ids = torch.full_like(batch.tokens, -1)
        branches, at = torch.zeros_like(batch.tokens), 0
        for number, piece in enumerate(range(index.row_offsets[row], index.row_offsets[row + 1])):
            start, length = int(index.start[piece]), int(index.length[piece])
            place = slice(at, at + length)
            ids[0, place] = number
            branches[0, place] = torch.from_numpy(self._branches[start : start + length])
            batch.positions[0, place] = torch.from_numpy(self._positions[start : start + length])
            at += length
        batch.document_ids, batch.branch_ids = ids, branches
        return batch


def tree_source(
    records: Iterable[Record],
    renderer: ChatRenderer,
    *,
    context_length: int,
    batch_rows: int,
    seed: int = 0,
    share: bool = True,
    drops: Drops,
    learn: Learn = "all",
) -> TreeSource:
    """Rows of conversations. share: those that begin alike together. learn: see data.chats.learnt_mask. Drops and
    raises as chat_shards does."""
    chats = rendered_chats(records, renderer, context_length, drops, learn)
    found = trees(chats, context_length) if share else [_tree([chat], 0) for chat in chats]
    return TreeSource(found, context_length, batch_rows, seed)
