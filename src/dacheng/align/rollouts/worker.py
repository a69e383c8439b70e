"""The interface of whatever writes rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dacheng.align.rollouts.ask import Ask
from dacheng.data.rollouts import Rollout


@dataclass(frozen=True, slots=True)
class Health:
    """Of a worker. alive: how many of its processes there are (1 in line). restarts: processes that were replaced.
    weights_version: of the weights it writes with. tokens, seconds: written so far, and the time that took."""

    alive: int
    restarts: int = 0
    weights_version: int = -1
    tokens: int = 0
    seconds: float = 0.0


class Worker(Protocol):
    """Writes rollouts with the weights it was last given. Work goes in by `start` and comes out by `collect`, so that
    a caller may train in between; `generate` does both."""

    def update_weights(self, model: Any, version: int) -> None:
        """What is asked for from now on is written with `model` as it is at this moment, known as `version`."""
        ...

    def start(self, asks: Sequence[Ask]) -> None: ...

    def collect(self) -> list[Rollout]:
        """One for each ask of the last `start`, in its order."""
        ...

    def generate(self, asks: Sequence[Ask]) -> list[Rollout]: ...

    def health(self) -> Health: ...

    def close(self) -> None: ...
