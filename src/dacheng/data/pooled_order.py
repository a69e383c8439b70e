"""An order of rows in which a batch holds rows of about one length: little padding, everything from the seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dacheng.data.order import permutation

POOL = 32  # batches whose rows are sorted by length together: enough for little padding, few enough to stay mixed


class PooledOrder:
    """A new permutation of the rows each epoch, none left out or repeated within one.

    The order is cut into pools of 32 batches; within a pool rows are sorted by length, and its batches are shuffled.
    Batches lie on the grid of the steps, which an epoch need not begin on: a batch goes over the end of an epoch.
    """

    def __init__(self, lengths: Sequence[int] | npt.NDArray[np.int64], batch_rows: int, seed: int = 0) -> None:
        self._lengths, self._size, self._seed = np.asarray(lengths, np.int64), batch_rows, seed
        self._epochs: dict[int, npt.NDArray[np.int64]] = {}

    def rows(self, numbers: npt.NDArray[np.int64]) -> list[int]:
        """The rows at these places of the endless order epoch after epoch."""
        epochs, within = np.divmod(numbers, len(self._lengths))
        return [int(self._epoch(int(epoch))[place]) for epoch, place in zip(epochs, within)]

    def _epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._epochs:
            while len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            size, order = self._size, permutation(len(self._lengths), self._seed, epoch)
            head = -epoch * len(order) % size
            parts = [order[:head]]
            for number, start in enumerate(range(head, len(order), size * POOL)):
                pool = order[start : start + size * POOL]
                pool = pool[np.argsort(self._lengths[pool], kind="stable")]
                whole = len(pool) // size
                batches = pool[: whole * size].reshape(whole, size)
                shuffled = batches[permutation(whole, self._seed, epoch, number)] if whole else batches
                parts += [shuffled.reshape(-1), pool[whole * size :]]
            self._epochs[epoch] = np.concatenate(parts)
        return self._epochs[epoch]
