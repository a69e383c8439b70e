import random

import numpy as np
import pytest
import torch

from dacheng.errors import DamagedFile
from dacheng.train.rng import RngStreams, derive_seed, isolated


def draws(streams: RngStreams) -> list[float]:
    named = [float(torch.rand(1, generator=streams.generator(p))) for p in ("init", "data", "sampling", "my own")]
    return [*named, float(torch.rand(1)), random.random(), float(np.random.rand()), random.gauss(0, 1)]


def test_a_seed_gives_one_sequence_and_another_seed_another():
    assert draws(RngStreams(3)) == draws(RngStreams(3))
    assert not set(draws(RngStreams(3))) & set(draws(RngStreams(4)))


def test_streams_do_not_touch_each_other():
    one, other = RngStreams(3), RngStreams(3)
    torch.rand(100, generator=one.generator("sampling"))
    assert torch.equal(torch.rand(5, generator=one.generator("data")), torch.rand(5, generator=other.generator("data")))


def test_ranks_share_init_and_data_but_not_dropout():
    def of(rank):
        streams = RngStreams(3, rank)
        shared = [float(torch.rand(1, generator=streams.generator(p))) for p in ("init", "data")]
        own = [float(torch.rand(1, generator=streams.generator(p))) for p in ("dropout", "sampling")]
        return shared, own

    (shared, own), (shared_too, other) = of(0), of(1)
    assert shared == shared_too and not set(own) & set(other)


def test_dropout_is_the_global_generator():
    assert RngStreams(3).generator("dropout") is torch.default_generator
    first = torch.nn.functional.dropout(torch.ones(50))
    RngStreams(3)
    assert torch.equal(torch.nn.functional.dropout(torch.ones(50)), first)


def test_a_saved_state_goes_on_where_it_was():
    streams = RngStreams(3)
    draws(streams)
    random.gauss(0, 1)  # leaves a second value behind, which is state too
    saved = {name: state.clone() for name, state in streams.state_dict().items()}
    assert all(state.dtype == torch.uint8 for state in saved.values())
    expected = [draws(streams) for _ in range(3)]
    fresh = RngStreams(99)
    fresh.load_state_dict(saved)
    assert [draws(fresh) for _ in range(3)] == expected


def test_isolated_puts_everything_back():
    streams = RngStreams(3)
    with isolated():
        torch.rand(7), random.random(), np.random.rand(3)
    assert draws(streams) == draws(RngStreams(3))


def test_a_damaged_state_is_named():
    streams = RngStreams(3)
    saved = streams.state_dict()
    saved["global.torch"] = saved["global.torch"][:10]
    with pytest.raises(DamagedFile, match="random state"):
        streams.load_state_dict(saved)


def test_seeds_depend_on_every_part():
    seeds = {derive_seed(s, p, r) for s in (1, 2) for p in ("a", "b") for r in (0, 1)}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)
