"""Several engines in one process take turns: a step of one, then of the next."""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """A lock that is given in the order in which it was asked for.

    Each thread that computes has a pool of torch's threads of its own, so two engines that step at the same time put
    two threads on every core. A plain lock would not do: whoever lets go of it asks again before the other is awake.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()  # until it is handed over

    def __exit__(self, *error: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()  # it stays taken
            else:
                self._taken = False
