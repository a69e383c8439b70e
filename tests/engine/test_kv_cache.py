"""The cache against a dictionary: what is written at a position is what is found there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacheng.engine.cache import INITIAL_TOKENS, SlotCache
from dacheng.models.cache import LayerCache

WINDOW = 5
SPEC = [LayerCache("paged", 2, 4), LayerCache("window", 2, 4, WINDOW), LayerCache("paged", 1, 4)]


def write(cache: SlotCache, truth: dict, spans: list[tuple[int, int, int]], generator: torch.Generator) -> None:
    count = sum(stop - first for _, first, stop in spans)
    for layer, spec in enumerate(SPEC):
        k, v = torch.randn(2, spec.kv_heads, count, 4, generator=generator)
        cache.append(layer, cache.places(layer, spans), k[None], v[None])
        row = 0
        for slot, first, stop in spans:
            for position in range(first, stop):
                truth[layer, slot, position] = (k[:, row], v[:, row])
                row += 1


def check(cache: SlotCache, truth: dict, lengths: dict[int, int]) -> None:
    for layer, spec in enumerate(SPEC):
        for slot, length in lengths.items():
            first = max(0, length - (spec.window or length))
            if first == length:
                continue
            k, v = cache.past(layer, slot, first, length)
            assert torch.equal(k, torch.stack([truth[layer, slot, p][0] for p in range(first, length)], 1))
            assert torch.equal(v, torch.stack([truth[layer, slot, p][1] for p in range(first, length)], 1))
            entries = cache.visible(layer, length)
            assert entries == length - first
            gathered, _ = cache.gather(layer, slot, 1, entries)
            # A window layer finds the same tokens, in whatever order: attention does not care.
            assert {tuple(row) for row in gathered[0, 0].tolist()} == {tuple(row) for row in k[0].tolist()}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=25), st.integers(0, 2**16))
def test_every_write_is_found_again(writes, seed):
    """Chunks of all lengths, shorter and longer than the window, in several slots at once, while the storage grows."""
    cache, truth, generator = SlotCache(SPEC, max_slots=4, max_context=250), {}, torch.Generator().manual_seed(seed)
    lengths = {cache.open(): 0 for _ in range(4)}
    for slot, count in writes:
        other = (slot + 1) % 4
        spans = [(slot, lengths[slot], lengths[slot] + count), (other, lengths[other], lengths[other] + 1)]
        for slot_, _, stop in spans:
            cache.reserve(slot_, stop)
            lengths[slot_] = stop
        write(cache, truth, spans, generator)
    check(cache, truth, lengths)


def test_no_place_is_written_twice_in_a_step():
    """Of a chunk longer than the window only its end is written: a device keeps no order among writes to one place."""
    cache = SlotCache(SPEC, max_slots=2, max_context=64)
    spans = [(cache.open(), 3, 20), (cache.open(), 0, 2)]
    for slot, _, stop in spans:
        cache.reserve(slot, stop)
    for layer, (heads, rows) in enumerate([(2, None), (2, [*range(12, 17), 17, 18]), (1, None)]):
        places = cache.places(layer, spans)
        assert (None if places.rows is None else places.rows.tolist()) == rows
        assert len(set(places.index.tolist())) == len(places.index) == heads * (19 if rows is None else len(rows))


def test_a_window_layer_stops_growing_at_its_window():
    cache = SlotCache(SPEC, max_slots=1, max_context=1000)
    cache.reserve(cache.open(), 1000)
    per_token = 4 * 4 * 2  # float32, E, keys and values
    assert cache.bytes() == per_token * (1000 * 2 + WINDOW * 2 + 1000 * 1)


def test_growth_doubles_and_stays_within_the_limits():
    cache = SlotCache(SPEC[:1], max_slots=3, max_context=300)
    slots = [cache.open() for _ in range(3)]
    assert cache.bytes() == 0
    sizes = []
    for tokens in range(1, 301):
        cache.reserve(slots[0], tokens)
        sizes.append(cache.bytes() // (2 * 2 * 4 * 4))
    assert sorted(set(sizes)) == [INITIAL_TOKENS, 2 * INITIAL_TOKENS, 4 * INITIAL_TOKENS, 300]
    cache.reserve(slots[1], 1)
    cache.reserve(slots[2], 1)
    assert cache.bytes() == 3 * 300 * 2 * 2 * 4 * 4  # not 4 slots: doubled, but never past max_slots


def test_slots_are_reused_lowest_first_and_come_back_clean():
    cache = SlotCache(SPEC, max_slots=3, max_context=64)
    assert [cache.open() for _ in range(3)] == [0, 1, 2]
    for slot in range(3):
        cache.reserve(slot, 10)
    spans = [(1, 0, 10)]
    for layer, spec in enumerate(SPEC):
        poison = torch.full((1, spec.kv_heads, 10, 4), float("nan"))
        cache.append(layer, cache.places(layer, spans), poison, poison)
    cache.close(2)
    cache.close(1)
    assert cache.open_slots == 1
    assert cache.open() == 1
    for layer in range(len(SPEC)):
        k, v = cache.gather(layer, 0, 3, cache.visible(layer, 10))
        assert k.isfinite().all() and v.isfinite().all()
    cache.open()
    with pytest.raises(IndexError):
        cache.open()
