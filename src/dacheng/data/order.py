"""Orders that are functions of a seed: a permutation an epoch, and a schedule of draws from several sources.

Numbers come from SplitMix64 (Steele, Lea and Flood 2014), not from a library's generator, whose streams may change with
its version: a run that is resumed years later reads the same data.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dacheng.errors import UsageError

Integers = npt.NDArray[np.int64]
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def splitmix64(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of SplitMix64: 64 bits that look random, of each 64-bit state."""
    z = state + np.uint64(_GOLDEN)  # numpy's unsigned integers wrap round, as the algorithm wants
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _mix(*numbers: int) -> int:
    """One 64-bit state of several integers."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = splitmix64(state ^ np.uint64(number & _MASK))
    return int(state[0])


def permutation(count: int, *key: int) -> Integers:
    """The numbers from 0 to count - 1 in an order that depends on `key` (seed, epoch…): sorted by random keys."""
    start = _mix(*key)
    states = np.arange(count, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(start)
    return np.argsort(splitmix64(states), kind="stable")


class DrawSchedule:
    """Which source the n-th draw takes, and how many it had taken before: both from n alone.

    Draws come in blocks of BLOCK. Each block holds every source exactly as often as its weight says (to the nearest
    1/BLOCK, by largest remainder), in an order that depends on the seed and the block.
    """

    BLOCK = 1000

    def __init__(self, weights: Mapping[str, float], seed: int) -> None:
        if not weights:
            raise UsageError("a mixture needs a source", field="mixture", remedy="give {name: (source, weight)}")
        for name, weight in weights.items():
            if not (0 < weight < float("inf")):
                raise UsageError(
                    "a weight must be positive", field=f"mixture.{name}", value=weight, remedy="or leave the source out"
                )
        self.names = list(weights)
        self._seed = seed
        self.quotas = _largest_remainder(np.array([float(weights[name]) for name in self.names]), self.BLOCK)
        for name, quota in zip(self.names, self.quotas):
            if quota == 0:
                raise UsageError(
                    f"the weight is under one draw in {self.BLOCK}, so the source would never be drawn",
                    field=f"mixture.{name}",
                    value=weights[name],
                    remedy="raise it, or leave the source out",
                )
        self._kinds = np.repeat(np.arange(len(self.names)), self.quotas)
        self._cached: tuple[int, Integers, Integers] | None = None

    def draw(self, number: Integers) -> tuple[Integers, Integers]:
        """number (N,) of draws -> (N,) index of the source, and (N,) how many draws of it came before."""
        source, before = np.empty_like(number), np.empty_like(number)
        for block in np.unique(number // self.BLOCK):
            here = number // self.BLOCK == block
            kinds, earlier = self._block(int(block))
            slot = number[here] - block * self.BLOCK
            source[here] = kinds[slot]
            before[here] = earlier[slot] + block * self.quotas[kinds[slot]]
        return source, before

    def _block(self, block: int) -> tuple[Integers, Integers]:
        """For each slot of a block: its source, and how many slots of that source come before it in the block."""
        if self._cached is None or self._cached[0] != block:
            kinds = self._kinds[permutation(self.BLOCK, self._seed, block)]
            earlier = np.empty_like(kinds)
            for kind, quota in enumerate(self.quotas):
                earlier[kinds == kind] = np.arange(quota)
            self._cached = (block, kinds, earlier)
        return self._cached[1], self._cached[2]


def _largest_remainder(weights: npt.NDArray[np.float64], total: int) -> Integers:
    """Whole numbers that add up to `total` and differ by less than one from the exact shares (Hamilton's method)."""
    exact = weights / weights.sum() * total
    shares = np.floor(exact).astype(np.int64)
    for index in np.argsort(-(exact - shares), kind="stable")[: total - shares.sum()]:
        shares[index] += 1
    return shares
