"""Blocks of the cache: who holds them, what is in them, and which is taken next."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

BLOCK = 32  # tokens; small enough that little of the last one is wasted, large enough that tables are short on a CPU


def root_key(*salts: str) -> bytes:
    """What the chain of a text's block keys starts from. Texts with other salts (tenant, adapter, version of the
    weights) never share a block."""
    return hashlib.blake2b("\0".join(f"{len(salt)}:{salt}" for salt in salts).encode(), digest_size=16).digest()


def extend_keys(keys: list[bytes], root: bytes, token_ids: Sequence[int]) -> None:
    """Appends the keys of the whole blocks of `token_ids` that are not in `keys` yet.

    A key is a cryptographic hash of the block before and the block's own ids: equal keys mean equal texts from the
    first token on, whoever chooses the texts (vLLM moved from Python's hash to SHA-256 for that reason)."""
    for start in range(len(keys) * BLOCK, len(token_ids) - BLOCK + 1, BLOCK):
        parent = keys[-1] if keys else root
        ids = array("q", token_ids[start : start + BLOCK]).tobytes()
        keys.append(hashlib.blake2b(parent + ids, digest_size=16).digest())


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK)


class BlockPool:
    """`size` blocks, each held by `refs` tables or free. A free block keeps its content, found by its key, until it is
    taken: the least recently held goes first. Every operation is O(1) (Kwon et al. 2023, PagedAttention).

    `lanes`: how many texts are expected to grow side by side. Blocks that were never used are taken far from one
    another, and the next block of a text is the one behind its last where that is to be had: adjacent blocks are read
    as they lie, others must be copied together first (unless a kernel follows the table).
    """

    def __init__(self, size: int, lanes: int = 1) -> None:
        self.size = size
        self.refs = [0] * size
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(_spread(size, lanes))
        self._by_key: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._tainted: set[int] = set()  # held blocks that are to be wiped when the last holder lets go
        self._touched = bytearray(size)
        self.touched = 0  # blocks that were ever taken

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.size - len(self._free)

    def take(self, prefer: int = -1) -> int:
        """A free block, now held once and without a key. Raises KeyError when there is none.

        `prefer` is taken if it is free, unless that would forget a content while others are free that have none.
        """
        block = next(iter(self._free)) if self._free else prefer
        if prefer in self._free and (prefer not in self._key_of or block in self._key_of):
            block = prefer
        del self._free[block]
        self._forget(block)
        self.refs[block] = 1
        if not self._touched[block]:
            self._touched[block] = 1
            self.touched += 1
        return block

    def has(self, key: bytes) -> bool:
        return key in self._by_key

    def share(self, key: bytes) -> int:
        """The block with this content, held once more. Raises KeyError when there is none (any more)."""
        block = self._by_key[key]
        if not self.refs[block]:
            del self._free[block]
        self.refs[block] += 1
        return block

    def publish(self, block: int, key: bytes) -> None:
        """The held block is full and has this content. Where another has it already, that one stays the known one."""
        if block not in self._key_of and key not in self._by_key and block not in self._tainted:
            self._by_key[key], self._key_of[block] = block, key

    def release(self, block: int, *, sound: bool = True) -> bool:
        """One holder less; the last frees it. Not `sound`: its numbers may be NaN, so nobody finds it from now on.
        Returns whether it is free now and must be wiped: a padded read may pass over free blocks, and 0 · NaN is NaN.
        """
        if not sound:
            self._forget(block)
            self._tainted.add(block)
        self.refs[block] -= 1
        assert self.refs[block] >= 0, f"block {block} was let go more often than held"
        if self.refs[block]:
            return False
        self._free[block] = None  # behind all others
        if block not in self._key_of:
            self._free.move_to_end(block, last=False)  # worth nothing: the next to be taken
        wipe = block in self._tainted
        self._tainted.discard(block)
        return wipe

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._by_key[key]

    def forget_all(self) -> None:
        """No content is found any more."""
        self._by_key.clear()
        self._key_of.clear()


def _spread(size: int, lanes: int) -> list[int]:
    """All blocks, in the order in which to start in them: first of each lane, middle of each, quarters, eighths…"""
    lane = max(1, size // max(1, lanes))
    bits = (lane - 1).bit_length()
    offsets = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)] if bits else [0]
    order = [start + offset for offset in offsets if offset < lane for start in range(0, size - lane + 1, lane)]
    return order + list(range(size - size % lane, size))
