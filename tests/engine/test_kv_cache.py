"""The cache against a dictionary: what is written at a position is what is found there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.engine.blocks import BLOCK, extend_keys, root_key
from dacheng.engine.cache import PagedCache
from dacheng.engine.capacity import cache_capacity, kv_bytes_per_token
from dacheng.engine.storage import KVFormat, LayerStorage
from dacheng.errors import DachengError, UsageError
from dacheng.models.cache import LayerCache

WINDOW = 40
SPEC = [
    LayerCache("paged", 2, 4),
    LayerCache("window", 2, 4, WINDOW),
    LayerCache("paged", 1, 4),
    LayerCache("paged", 2, 4, None, 6),
]


def write(cache: PagedCache, truth: dict, spans: list[tuple[int, int, int]], generator: torch.Generator) -> None:
    count = sum(stop - first for _, first, stop in spans)
    for layer, spec in enumerate(SPEC[: len(cache._layers)]):
        k = torch.randn(spec.kv_heads, count, 4, generator=generator)
        v = torch.randn(spec.kv_heads, count, spec.value_width or 4, generator=generator)
        cache.append(layer, cache.places(layer, spans), k[None], v[None])
        row = 0
        for slot, first, stop in spans:
            for position in range(first, stop):
                truth[layer, slot, position] = (k[:, row], v[:, row])
                row += 1


def check(cache: PagedCache, truth: dict, lengths: dict[int, int]) -> None:
    for layer, spec in enumerate(SPEC):
        for slot, length in lengths.items():
            first = max(0, length + 1 - spec.window) if spec.window else 0  # what the next token looks at
            if first == length:
                continue
            k, v = cache.read(layer, cache.ranges(layer, slot, first, length))
            assert torch.equal(k, torch.stack([truth[layer, slot, p][0] for p in range(first, length)], 1))
            assert torch.equal(v, torch.stack([truth[layer, slot, p][1] for p in range(first, length)], 1))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 70)), min_size=1, max_size=12), st.integers(0, 2**16))
def test_every_write_is_found_again(writes, seed):
    """Chunks of all lengths, shorter and longer than block and window, in several slots at once, in a pool that is too
    small for lanes of their own."""
    cache = PagedCache(SPEC, max_slots=4, max_tokens=1000, max_step=80)
    truth, generator = {}, torch.Generator().manual_seed(seed)
    lengths = {cache.open(): 0 for _ in range(4)}
    for slot, count in writes:
        other = (slot + 1) % 4
        spans = [(slot, lengths[slot], lengths[slot] + count), (other, lengths[other], lengths[other] + 1)]
        for slot_, _, stop in spans:
            assert cache.reserve(slot_, stop)
            lengths[slot_] = stop
        write(cache, truth, spans, generator)
        for slot_, _, stop in spans:
            cache.commit(slot_, stop, [])
    check(cache, truth, lengths)
    for slot in range(4):
        cache.close(slot)
    assert cache.open_slots == 0 and all(pool.free == pool.size for pool in cache.pools)


def test_adjacent_blocks_are_read_as_they_lie_and_others_are_put_together():
    cache = PagedCache(SPEC[:1], max_slots=2, max_tokens=8 * BLOCK)
    first, second = cache.open(), cache.open()
    assert cache.reserve(first, 2 * BLOCK) and cache.reserve(second, 1)
    assert cache.ranges(0, first, 5, 2 * BLOCK) == [(5, 64)] and cache.ranges(0, second, 0, 1) == [(128, 129)]
    k, _ = cache.read(0, [(5, 64)])
    assert k.data_ptr() == cache.storage(0).k[0, 5].data_ptr()
    assert cache.reserve(first, 5 * BLOCK)  # the fifth would be the second's: it goes on elsewhere
    assert cache.ranges(0, first, 0, 5 * BLOCK) == [(0, 128), (192, 224)]
    assert cache.table(0, first) == [0, 1, 2, 3, 6]


def test_a_window_layer_lets_go_of_what_slid_past():
    cache = PagedCache(SPEC[:2], max_slots=2, max_tokens=4096, max_step=64)
    window = cache.pools[1]
    assert window.size == 2 * (2 + 2) + 2  # not 128
    slot = cache.open()
    for stop in range(64, 4097, 64):
        assert cache.reserve(slot, stop)
        cache.commit(slot, stop, [])
        assert window.used <= 3
    assert cache.pools[0].used == 128
    assert cache.table(1, slot)[:126] == [-1] * 126 and min(cache.table(1, slot)[126:]) >= 0
    cache.close(slot)
    assert window.used == 0


def text_keys(count: int, salt: str = "") -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, root_key(salt), range(count * BLOCK))
    return keys


def written(cache: PagedCache, tokens: int, keys: list[bytes], truth: dict | None = None) -> int:
    slot = cache.open()
    assert cache.reserve(slot, tokens)
    write(cache, {} if truth is None else truth, [(slot, 0, tokens)], torch.Generator().manual_seed(tokens))
    cache.commit(slot, tokens, keys)
    return slot


def test_a_beginning_is_found_by_its_keys_and_shared():
    cache, keys, truth = PagedCache(SPEC, max_slots=3, max_tokens=2048), text_keys(6), {}
    first = written(cache, 5 * BLOCK + 7, keys, truth)
    slot = cache.open()
    assert cache.adopt(slot, keys, 6 * BLOCK) == 5 * BLOCK
    assert cache.table(0, slot) == cache.table(0, first)[:5]
    assert cache.table(1, slot)[:3] == [-1, -1, -1]  # a window of 40 behind token 160 needs blocks 3 and 4
    check(cache, {(layer, slot, p): kv for (layer, _, p), kv in truth.items()}, {slot: 5 * BLOCK})
    assert cache.pools[0].used == 6
    cache.close(first)
    assert cache.pools[0].used == 5
    cache.close(slot)
    assert cache.pools[0].used == 0
    again = cache.open()
    assert cache.adopt(again, keys, 5 * BLOCK - 1) == 4 * BLOCK == len(cache.table(0, again)) * BLOCK  # free, not lost
    cache.close(again)
    other = cache.open()
    assert cache.adopt(other, text_keys(6, "another tenant"), 6 * BLOCK) == 0
    cache.close(other)
    cache.forget_prefixes()
    assert cache.adopt(cache.open(), keys, 6 * BLOCK) == 0


def test_what_a_window_needs_must_be_there_too():
    """The beginning is known in the layers that see everything, its end only where the window layer still has it."""
    cache, keys = PagedCache(SPEC[:2], max_slots=1, max_tokens=4096, max_step=64), text_keys(20)
    slot = written(cache, 64, keys)
    for stop in range(128, 641, 64):
        assert cache.reserve(slot, stop)
        cache.commit(slot, stop, keys)
    cache.close(slot)
    slot = cache.open()
    assert cache.adopt(slot, keys, 640) == 640
    cache.close(slot)
    slot = cache.open()
    assert cache.adopt(slot, keys, 3 * BLOCK) == 0  # those blocks were taken for what came later
    cache.close(slot)


def test_unsound_blocks_are_wiped_and_never_found():
    cache, keys = PagedCache(SPEC, max_slots=2, max_tokens=512), text_keys(2)
    slot = cache.open()
    assert cache.reserve(slot, 70)
    for layer, spec in enumerate(SPEC):
        k = torch.full((1, spec.kv_heads, 70, 4), float("nan"))
        v = torch.full((1, spec.kv_heads, 70, spec.value_width or 4), float("nan"))
        cache.append(layer, cache.places(layer, [(slot, 0, 70)]), k, v)
    cache.commit(slot, 64, keys)
    sharer = cache.open()
    assert cache.adopt(sharer, keys, 64) == 64
    cache.close(slot, sound=False)
    assert cache.storage(0).k.isnan().any()  # somebody still holds them
    cache.close(sharer)
    for layer in (0, 2, 3):
        assert cache.storage(layer).k.isfinite().all() and cache.storage(layer).v.isfinite().all()
    assert cache.adopt(cache.open(), keys, 64) == 0


def test_nothing_changes_when_there_is_no_room():
    cache = PagedCache(SPEC, max_slots=2, max_tokens=4 * BLOCK)
    first, second = cache.open(), cache.open()
    assert cache.reserve(first, 3 * BLOCK) and cache.fits(second, BLOCK) and not cache.fits(second, BLOCK + 1)
    used = [pool.used for pool in cache.pools]
    assert not cache.reserve(second, BLOCK + 1) and [pool.used for pool in cache.pools] == used
    assert cache.reserve(second, BLOCK) and cache.usage == 1.0


def test_only_blocks_that_were_used_have_memory_behind_them():
    cache = PagedCache(SPEC[:1], max_slots=2, max_tokens=10**6)
    assert cache.bytes() == 0
    slot = cache.open()
    cache.reserve(slot, 33)
    assert cache.bytes() == 2 * BLOCK * 2 * 2 * 4 * 4  # blocks · tokens · (k, v) · heads · width · float32
    cache.close(slot)
    cache.reserve(cache.open(), 33)
    assert cache.bytes() == 2 * BLOCK * 2 * 2 * 4 * 4


def test_a_cache_that_cannot_be_is_refused_by_name():
    with pytest.raises(DachengError) as refusal:
        LayerStorage(SPEC[0], 2**50, KVFormat(torch.float32), torch.float32, torch.device("cpu"))
    assert refusal.value.field == "cache_tokens" and refusal.value.remedy


def test_slots_are_reused_lowest_first():
    cache = PagedCache(SPEC, max_slots=3, max_tokens=64)
    assert [cache.open() for _ in range(3)] == [0, 1, 2]
    cache.close(2)
    cache.close(1)
    assert cache.open_slots == 1 and cache.open() == 1
    cache.open()
    with pytest.raises(IndexError):
        cache.open()


def test_the_capacity_is_what_was_asked_for_or_what_memory_allows(monkeypatch):
    spec = [LayerCache("paged", 2, 4), LayerCache("paged", 2, 4, None, 6)]  # 16 + 20 numbers a token
    per_token = kv_bytes_per_token(spec, KVFormat(torch.float32))
    assert per_token == 144 and kv_bytes_per_token(spec, KVFormat(torch.bfloat16)) == 72
    assert kv_bytes_per_token(spec, KVFormat(torch.int8)) == 36 + 4 * 2 * 4  # a scale for each key and value of a head
    assert cache_capacity(per_token, wanted=1000, tokens=77) == 77
    assert cache_capacity(per_token, wanted=1000, bytes_=144 * 100) == 96
    monkeypatch.setattr("dacheng.engine.capacity.available_bytes", lambda: 144 * 1000)
    assert cache_capacity(per_token, wanted=200) == 200
    assert cache_capacity(per_token, wanted=1000) == 384  # 40 % of 1000, in blocks
    for wrong in ({"tokens": 0}, {"bytes_": 144 * 31}, {"tokens": 64, "bytes_": 10**6}):
        with pytest.raises(UsageError) as refusal:
            cache_capacity(per_token, wanted=1000, **wrong)
        assert refusal.value.field in ("cache_tokens", "cache_bytes") and refusal.value.remedy
