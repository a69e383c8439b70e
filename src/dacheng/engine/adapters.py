"""Steps in which some rows go through an adapter."""

from __future__ import annotations

import torch
from torch import Tensor

from dacheng.adapt.bank import AdapterBank
from dacheng.engine.cache import KVCache
from dacheng.engine.executor import Eager, Executor, StepResult
from dacheng.engine.fused import FusedCPU
from dacheng.engine.request import Request
from dacheng.engine.step_plan import StepPlan
from dacheng.errors import UsageError
from dacheng.models.decoder import Decoder
from dacheng.nn.lora import BASE


class Adapted:
    """An executor for a model with adapters. What has none runs as ever.

    A compiled executor takes most adapters (`takes`). Chunks with another go to Eager, over the same modules and the
    same cache; each chunk sees only its own past, so one step may be two forwards. Counted in `fallbacks`.
    """

    def __init__(self, inner: Executor, model: Decoder, bank: AdapterBank) -> None:
        self.inner, self.name, self.bank = inner, inner.name, bank
        self._divided = 0
        self._eager = inner if isinstance(inner, Eager) else Eager(model)
        self._eager.rows = bank.rows

    @property
    def fallbacks(self) -> int:
        """Steps that the compiled executor did not run, or not alone."""
        return self._divided + int(getattr(self.inner, "fallbacks", 0))

    def run(self, plan: StepPlan, cache: KVCache) -> StepResult:
        default = self.bank.rows.default  # a policy in training: what every request goes through that names none
        apart = [not self._takes(chunk.request.adapter_number or default) for chunk in plan.chunks]
        if self.inner is self._eager or not any(apart):
            return self.inner.run(plan, cache)
        self._divided += 1
        if all(apart):
            return self._eager.run(plan, cache)
        plans = [StepPlan([c for c, own in zip(plan.chunks, apart) if own is other]) for other in (False, True)]
        base, other = self.inner.run(plans[0], cache), self._eager.run(plans[1], cache)
        return StepResult(_in_order(plan, plans, (base, other)), base.hidden_sums | other.hidden_sums)

    def _takes(self, number: int) -> bool:
        """Whether the inner executor runs rows of this adapter."""
        return number == BASE or (isinstance(self.inner, FusedCPU) and self.inner.takes(number))


def _in_order(plan: StepPlan, plans: list[StepPlan], results: tuple[StepResult, StepResult]) -> Tensor:
    """Logits (R, V) of two half steps in the order of the whole."""
    found = {
        chunk.request.id: result.logits[rows] for half, result in zip(plans, results) for chunk, rows in half.rows()
    }
    return torch.cat([found[chunk.request.id] for chunk in plan.chunks])


def check_adapter(bank: AdapterBank | None, name: str) -> None:
    """Raises DachengError for an adapter that is not there."""
    if bank is not None:
        bank.check(name)
    elif name:
        raise UsageError("this engine has no adapters", field="adapter", value=name, remedy="Engine(adapters=bank)")


def hold_adapter(bank: AdapterBank | None, request: Request) -> None:
    """Keeps a request's adapter on the model until `let_go`."""
    if bank is not None and request.adapter:
        request.adapter_number = bank.acquire(request.adapter)


def let_go(bank: AdapterBank | None, request: Request) -> None:
    if bank is not None and request.adapter_number:
        bank.release(request.adapter_number)


def need_bank(bank: AdapterBank | None) -> AdapterBank:
    """Raises UsageError where there is none."""
    if bank is None:
        raise UsageError("this engine has no adapters", field="adapters", value=None, remedy="Engine(adapters=bank)")
    return bank
