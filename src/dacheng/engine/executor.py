"""Running a step: plan in, logits out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dacheng.engine.cache import KVCache
from dacheng.engine.context import CachedContext
from dacheng.engine.step_plan import StepPlan
from dacheng.models.decoder import Decoder
from dacheng.nn.lora import AdapterRows


@dataclass(slots=True)
class StepResult:
    """logits (R, V) float32: the rows that the plan's chunks asked for, in plan order (see StepPlan.rows).
    hidden_sums: by request id, the sum (D,) of the last hidden states of its chunk, for requests that want them."""

    logits: Tensor
    hidden_sums: dict[int, Tensor] = field(default_factory=dict)


def flat(plan: StepPlan) -> tuple[list[int], list[int], list[int]]:
    """Tokens and positions of a step's rows, and the rows whose logits are needed."""
    tokens: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    for chunk in plan.chunks:
        first_row = len(tokens)
        wanted.extend(first_row + position - chunk.start for position in chunk.logit_rows)
        tokens.extend(chunk.token_ids)
        positions.extend(range(chunk.start, chunk.stop))
    return tokens, positions, wanted


class Executor(Protocol):
    """Computes a step: writes the plan's tokens into the cache and returns what was asked for. Where it raises, the
    same plan may be run again: nothing that was computed before lies where the step writes."""

    name: str

    def run(self, plan: StepPlan, cache: KVCache) -> StepResult: ...


class Eager:
    """The model itself, as trained: supports every plan, and is what other executors are compared with.

    Computes in the dtype of the weights (an autocast around it is switched off: the cache has one dtype) and in
    evaluation mode, whatever the model's mode is: a trainer may sample between two steps.
    """

    name = "eager"

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.rows: AdapterRows | None = None  # of a model with adapters

    @torch.inference_mode()
    def run(self, plan: StepPlan, cache: KVCache) -> StepResult:
        training = self.model.training
        if training:
            self.model.eval()
        try:
            with torch.autocast(self.device.type, enabled=False):
                return self._run(plan, cache)
        finally:
            if training:
                self.model.train()

    def _run(self, plan: StepPlan, cache: KVCache) -> StepResult:
        tokens, positions, wanted = flat(plan)
        inputs = torch.tensor([tokens, positions], device=self.device).unsqueeze(1)  # (2, 1, N)
        numbers = [chunk.request.adapter_number for chunk in plan.chunks for _ in range(chunk.count)]
        with self._through(numbers):
            hidden = self.model(inputs[0], inputs[1], CachedContext(cache, plan))[0]  # (N, D)
        with self._through([numbers[row] for row in wanted]):
            if len(wanted) < len(tokens):
                logits = self.model.head(hidden[torch.tensor(wanted, dtype=torch.long, device=self.device)])
            else:
                logits = self.model.head(hidden)
        return StepResult(logits, self.hidden_sums(plan, hidden))

    def _through(self, numbers: list[int]) -> AbstractContextManager[None]:
        """Rows go through the adapters of these numbers; where none has one, as the model does by itself."""
        if self.rows is None or not any(numbers):
            return nullcontext()
        chosen = [number or self.rows.default for number in numbers]
        return self.rows.use(torch.tensor(chosen, device=self.device))

    @staticmethod
    def hidden_sums(plan: StepPlan, hidden_ND: Tensor) -> dict[int, Tensor]:
        """By request id, for those that want it (see StepResult)."""
        sums: dict[int, Tensor] = {}
        row = 0
        for chunk in plan.chunks:
            if chunk.request.wants_hidden:
                sums[chunk.request.id] = hidden_ND[row : row + chunk.count].float().sum(0)
            row += chunk.count
        return sums
