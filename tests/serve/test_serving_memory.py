"""The memory check before serving: what is refused, and what is named instead."""

from __future__ import annotations

import pytest

from dacheng.errors import DachengError
from dacheng.serve.memory import PROCESS, cache_room, check_weights, weight_bytes

GIB = 1 << 30
PER_TOKEN = 46_080  # SmolLM2-135M in float32


def room(available, context=8192, batch=16):
    return cache_room(PER_TOKEN, available, max_batch=batch, max_context=context)


def test_a_full_batch_where_there_is_room_and_else_what_fits():
    assert room(64 * GIB) == 16 * (8192 + 32) * PER_TOKEN
    assert PER_TOKEN * 8224 <= room(2 * GIB) < 2 * GIB


def test_the_longest_context_that_fits_is_named_and_fits():
    with pytest.raises(DachengError) as caught:
        room(PROCESS // 2 + (128 << 20), batch=1)
    assert caught.value.field == "max_context"
    context = int(caught.value.remedy.split()[1])
    assert 1000 < context < 8192 and room(PROCESS // 2 + (128 << 20), context, 1)
    with pytest.raises(DachengError):
        room(PROCESS // 2 + (128 << 20), context + 64, 1)
    with pytest.raises(DachengError, match="smaller model"):
        room(PROCESS // 2 + (1 << 20))


def test_weights_that_do_not_fit_are_not_loaded(tiny_directory):
    size = weight_bytes(tiny_directory, packed=False)
    assert 30_000 < size < 1_000_000
    check_weights(size, PROCESS + size)
    with pytest.raises(DachengError) as caught:
        check_weights(4 * GIB, 3 * GIB)
    assert "2.61 GiB" in caught.value.remedy and caught.value.value == "4.00 GiB"
