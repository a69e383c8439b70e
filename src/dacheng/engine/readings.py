"""Requests that read a text and generate nothing: what is its probability, what is its vector."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dacheng.engine.request import Request


@dataclass(slots=True, eq=False)
class Reading(Request):
    """Scheduled as any request; it ends when all it knows is computed. `params` do not matter to it.

    (Subclasses name their base: slots=True makes a class anew, which the zero-argument super() does not survive.)
    """

    room: ClassVar[int] = 0

    @property
    def drafts_allowed(self) -> bool:
        return False

    @property
    def skippable(self) -> int:
        """Nothing: a reading wants to see all of its text, unless it says more."""
        return 0

    def read(self, positions: range, logits_RV: Tensor, hidden_sum_D: Tensor | None) -> bool:
        """Takes what one step computed: logits at `positions`, and the sum of the hidden states if it wants them.
        Returns False when there is a NaN in it."""
        raise NotImplementedError


@dataclass(slots=True, eq=False)
class Scoring(Reading):
    """Sums the log-probabilities (nats) of prompt_token_ids[score_from:], score_from at least 1."""

    score_from: int = field(default=1, kw_only=True)
    nats: float = field(default=0.0, init=False)
    greedy: bool = field(default=True, init=False)  # each scored token was the most likely one

    room: ClassVar[int] = -1  # the last token is only a target: nothing is predicted from it

    def __post_init__(self) -> None:
        Reading.__post_init__(self)
        del self.known[-1:]

    @property
    def skippable(self) -> int:
        """What comes before the first scored token's predecessor only has to be in the cache."""
        return self.score_from - 1

    def restart(self) -> None:
        Reading.restart(self)
        self.nats, self.greedy = 0.0, True

    def logit_rows(self, start: int, stop: int) -> range:
        return range(max(start, self.score_from - 1), stop)

    def read(self, positions: range, logits_RV: Tensor, hidden_sum_D: Tensor | None) -> bool:
        if not positions:
            return True
        targets = self.prompt_token_ids[positions.start + 1 : positions.stop + 1]
        ids_R1 = logits_RV.new_tensor(targets).long().unsqueeze(1)
        nats_R1 = logits_RV.gather(1, ids_R1) - logits_RV.logsumexp(-1, keepdim=True)
        self.nats += nats_R1.double().sum().item()
        self.greedy = self.greedy and logits_RV.argmax(-1).tolist() == targets
        return not math.isnan(self.nats)


@dataclass(slots=True, eq=False)
class Embedding(Reading):
    """The mean of the last hidden states over the text, scaled to length 1."""

    hidden_sum_D: Tensor | None = field(default=None, init=False)

    wants_hidden: ClassVar[bool] = True

    def restart(self) -> None:
        Reading.restart(self)
        self.hidden_sum_D = None

    def logit_rows(self, start: int, stop: int) -> range:
        return range(0)

    def read(self, positions: range, logits_RV: Tensor, hidden_sum_D: Tensor | None) -> bool:
        assert hidden_sum_D is not None, "the executor left out the hidden states"
        self.hidden_sum_D = hidden_sum_D if self.hidden_sum_D is None else self.hidden_sum_D + hidden_sum_D
        return bool(hidden_sum_D.isfinite().all())

    def unit_vector(self) -> Tensor:
        """(D,). The mean has the direction of the sum: only the length is left to set."""
        assert self.hidden_sum_D is not None
        return self.hidden_sum_D / self.hidden_sum_D.norm().clamp_min(1e-12)

    def vector(self) -> list[float]:
        """The unit vector as numbers."""
        return self.unit_vector().tolist()
