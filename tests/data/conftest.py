"""A tokenizer small enough to check by hand, and shards that need no disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dacheng.data.shards import TokenShard, TokenShards


class ByteTokenizer:
    """Ids are UTF-8 bytes + 2; 0 ends a text, 1 pads."""

    vocab_size = 258
    eos_id = 0
    pad_id = 1
    fingerprint = "bytes"

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) + 2 for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(int(i) - 2 for i in ids).decode("utf-8")


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


def shards_in_memory(*shards: Sequence[int]) -> TokenShards:
    """Shards with documents of these lengths. Token ids count up through everything, so each can be told apart."""
    made, first = [], 0
    for number, lengths in enumerate(shards):
        ends = np.cumsum(np.asarray(lengths, np.int64))
        total = int(ends[-1]) if len(ends) else 0
        starts = ends - np.asarray(lengths, np.int64)
        tokens = np.arange(first, first + total, dtype=np.int32)
        made.append(TokenShard(Path(f"{number}"), tokens, starts, np.asarray(lengths, np.int64), digest=f"{lengths}"))
        first += total
    return TokenShards(tuple(made))


@pytest.fixture
def make_shards() -> Callable[..., TokenShards]:
    return shards_in_memory
