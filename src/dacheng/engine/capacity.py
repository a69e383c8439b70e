"""How many tokens the cache holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dacheng.engine.blocks import BLOCK
from dacheng.engine.cache import PagedCache
from dacheng.engine.storage import KVFormat, kv_format
from dacheng.errors import UsageError
from dacheng.machine import available_bytes
from dacheng.models.cache import LayerCache
from dacheng.models.decoder import Decoder

MEMORY_SHARE = (
    0.4  # of the memory that is free when the engine is made: the rest is for a step's activations and others
)


def kv_bytes_per_token(spec: Sequence[LayerCache], format_: KVFormat) -> int:
    """Of one token in all layers, scales included."""
    return sum(format_.bytes_per_token(layer) for layer in spec)


def cache_capacity(per_token: int, *, wanted: int, tokens: int | None = None, bytes_: int | None = None) -> int:
    """Tokens that the cache holds, all requests together. per_token: bytes of one in all layers, those of a draft model
    included.

    tokens: as many. bytes_: as many as fit, each counted with all layers, so what is used is at most that. Neither:
    `wanted`, or as many of them as MEMORY_SHARE of the available memory holds.
    Raises UsageError for both, and for less than one block of 32 tokens.
    """
    if tokens is not None and bytes_ is not None:
        raise UsageError(
            "the cache has one size", field="cache_bytes", value=bytes_, remedy="give cache_tokens or cache_bytes"
        )
    value: int | None = tokens
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


def make_caches(
    models: Sequence[Decoder],
    *,
    kv_dtype: torch.dtype | str | None,
    max_batch: int,
    max_context: int,
    max_step: int,
    tokens: int | None,
    bytes_: int | None,
) -> list[PagedCache]:
    """One of each model, for as many tokens (see cache_capacity); kv_dtype: see storage.kv_format."""
    weights = [next(model.parameters()) for model in models]
    per_token = sum(
        kv_bytes_per_token(model.cache_spec(), kv_format(kv_dtype, own.dtype)) for model, own in zip(models, weights)
    )
    wanted = max(1, max_batch) * max_context
    max_tokens = cache_capacity(per_token, wanted=wanted, tokens=tokens, bytes_=bytes_)
    return [
        PagedCache(
            model.cache_spec(), max_slots=max(1, max_batch), max_tokens=max_tokens, max_step=max_step,
            dtype=own.dtype, kv_dtype=kv_dtype, device=own.device,
        )
        for model, own in zip(models, weights)
    ]  # fmt: skip
