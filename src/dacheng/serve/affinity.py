"""Which engine process has computed the beginning of a prompt already: a guess from the text alone."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection
from hashlib import blake2b
from typing import Any

BLOCK_CHARS = 128  # about the 32 tokens of one of the cache's blocks
MOST_BLOCKS = 256  # of a prompt that are looked at
FIRST = ("tools", "instructions", "system")  # what templates put before the conversation
THEN = ("messages", "prompt", "input")


def chain(body: bytes, tenant: str) -> list[bytes]:
    """One hash for each block of the prompt in a request's body, each over all before it, so that texts share as many
    as they begin alike. Empty for what holds no prompt of a block's length."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return []
    if not isinstance(asked, dict):
        return []
    text = _text(asked)
    last = blake2b(f"{tenant}\0{asked.get('model')}\0{asked.get('cache_salt')}".encode("utf-8", "replace")).digest()
    found = []
    for start in range(0, len(text) - BLOCK_CHARS + 1, BLOCK_CHARS):
        block = text[start : start + BLOCK_CHARS].encode("utf-8", "replace")
        last = blake2b(last + block, digest_size=8).digest()
        found.append(last)
    return found


def _text(asked: dict[str, Any]) -> str:
    """The beginning of what becomes the prompt, in its order."""
    most = BLOCK_CHARS * MOST_BLOCKS
    text = "".join(json.dumps(asked[name]) for name in FIRST if asked.get(name))
    for name in THEN:
        value = asked.get(name)
        for piece in value if isinstance(value, list) else [value] if value else []:
            if len(text) >= most:
                break
            text += piece if isinstance(piece, str) else json.dumps(piece)
    return text[:most]


class Affinity:
    """By hash, the workers that were given a prompt with that beginning. most: hashes that are kept; those that were
    not met for longest are forgotten first."""

    def __init__(self, most: int = 1 << 16) -> None:
        self._most = most
        self._owners: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._owners)

    def shares(self, hashes: list[bytes], workers: Collection[int]) -> dict[int, float]:
        """Of each worker that has some of it, the share of the prompt that it had from the beginning on, 0 to 1."""
        found: dict[int, float] = {}
        for i, one in enumerate(hashes):
            owners = self._owners.get(one)
            if owners is None:
                break
            self._owners.move_to_end(one)
            found |= {worker: (i + 1) / len(hashes) for worker in owners if worker in workers}
        return found

    def note(self, hashes: list[bytes], worker: int, workers: Collection[int]) -> None:
        """`worker` is given this prompt. workers: those that there are; others are forgotten on the way."""
        for one in hashes:
            others = tuple(w for w in self._owners.get(one, ()) if w in workers and w != worker)
            self._owners[one] = (*others, worker)
            self._owners.move_to_end(one)
        while len(self._owners) > self._most:
            self._owners.popitem(last=False)
