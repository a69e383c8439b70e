"""How many tokens the cache holds."""

from __future__ import annotations

from collections.abc import Sequence

from dacheng.engine.blocks import BLOCK
from dacheng.errors import UsageError
from dacheng.machine import available_bytes
from dacheng.models.cache import LayerCache

MEMORY_SHARE = (
    0.4  # of the memory that is free when the engine is made: the rest is for a step's activations and others
)


def cache_capacity(
    spec: Sequence[LayerCache], itemsize: int, *, wanted: int, tokens: int | None = None, bytes_: int | None = None
) -> int:
    """Tokens that the cache holds, all requests together.

    tokens: as many. bytes_: as many as fit, each counted with all layers, so what is used is at most that. Neither:
    `wanted`, or as many of them as MEMORY_SHARE of the available memory holds.
    Raises UsageError for both, and for less than one block of 32 tokens.
    """
    if tokens is not None and bytes_ is not None:
        raise UsageError(
            "the cache has one size", field="cache_bytes", value=bytes_, remedy="give cache_tokens or cache_bytes"
        )
    value: int | None = tokens
    per_token = sum(layer.bytes_per_token(itemsize) for layer in spec)
    if tokens is not None:
        found, field = tokens, "cache_tokens"
    elif bytes_ is not None:
        found, field, value = bytes_ // per_token // BLOCK * BLOCK, "cache_bytes", bytes_
    else:
        room = int(MEMORY_SHARE * available_bytes()) // per_token // BLOCK * BLOCK
        found, field = max(BLOCK, min(wanted, room)), "cache_tokens"
    if found < 1 or (bytes_ is not None and found < BLOCK):
        raise UsageError(
            "the cache holds no block",
            field=field,
            value=value,
            remedy=f"at least {BLOCK} tokens: {BLOCK * per_token} bytes",
        )
    return found
