"""Plain text beside rollouts, so that what is not rewarded is not forgotten (PPO-ptx: Ouyang et al. 2022, eq. 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dacheng.data.batches import Source, TokenBatch
from dacheng.data.rollouts import RolloutBatch
from dacheng.objectives.base import Metrics, Objective, StepContext, Term
from dacheng.recipes import to_dict


class WithText:
    """A source whose step is a step of `rollouts` and one of `text`, as separate micro-batches."""

    def __init__(self, rollouts: Any, text: Source) -> None:
        self.rollouts, self.text = rollouts, text
        self.fingerprint = f"{rollouts.fingerprint} {text.fingerprint}"

    @property
    def tokens_per_step(self) -> int:
        return int(self.rollouts.tokens_per_step + self.text.tokens_per_step)

    def next(self, step: int, model: Any = None, weights_version: int = 0) -> list[Any]:
        return [*self.rollouts.next(step, model, weights_version), *self.text.next(step)]

    def state_dict(self) -> dict[str, Any]:
        return {"rollouts": self.rollouts.state_dict(), "text": self.text.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rollouts.load_state_dict(state["rollouts"])
        self.text.load_state_dict(state["text"])


class ByKind:
    """The objective of each kind of batch; a kind without one adds nothing (a critic learns nothing from text).

    text_weight: of all terms of text. text_part: the attribute of the trained model that text is computed with.
    """

    couples_batch = False

    def __init__(
        self,
        rollouts: Objective,
        text: Objective | None = None,
        text_weight: float = 1.0,
        text_part: str | None = None,
    ) -> None:
        self._of: Mapping[type, Objective | None] = {RolloutBatch: rollouts, TokenBatch: text}
        self.text_weight, self.text_part = text_weight, text_part
        self.rollouts = to_dict(getattr(rollouts, "config", None))  # plain: what a resume compares

    def counts(self, batch: Any) -> dict[str, float]:
        objective = self._of[type(batch)]
        return {} if objective is None else objective.counts(batch)

    def __call__(self, model: Any, batch: Any, ctx: StepContext) -> tuple[dict[str, Term], Metrics]:
        objective = self._of[type(batch)]
        if objective is None:
            return {}, {}
        if isinstance(batch, RolloutBatch):
            return objective(model, batch, ctx)
        terms, metrics = objective(getattr(model, self.text_part) if self.text_part else model, batch, ctx)
        weighted = {name: Term(term.sum, term.weight * self.text_weight) for name, term in terms.items()}
        return weighted, {f"ptx/{name}": value for name, value in metrics.items()}
