"""How long to train: steps, tokens, FLOPs, minutes or money, turned into a number of steps once."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from dacheng.errors import UsageError
from dacheng.ledger import Prices


@dataclass(frozen=True)
class Budget:
    """Limits of a run; the one that is reached first decides. Raises UsageError for one that is not above zero.

    tokens: positions of the batches. flops: of the model, forward and backward. minutes: of training, on this machine.
    money: for power and hardware, in the currency of the price file. assumed_mfu: share of the machine's measured
    matmul peak that minutes and money count on; None measures two real steps instead.
    """

    tokens: float | None = None
    flops: float | None = None
    minutes: float | None = None
    money: float | None = None
    assumed_mfu: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError("must be above 0", field=f.name, value=value, remedy="leave it out for no such limit")
        if self.assumed_mfu is not None and self.assumed_mfu > 1:
            raise UsageError("no more than the peak", field="assumed_mfu", value=self.assumed_mfu, remedy="0.4, say")

    @property
    def needs_speed(self) -> bool:
        return self.minutes is not None or self.money is not None


@dataclass(frozen=True)
class Speed:
    """Tokens per second, and how that is known."""

    tokens_per_s: float
    kind: Literal["measured", "assumed"]


@dataclass(frozen=True)
class Resolved:
    """What a budget came to. basis: one line per limit, with its formula and whether it is measured or assumed."""

    steps: int
    basis: list[str]

    def to_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "basis": self.basis}


def assumed_speed(peak_gflops: float, mfu: float, flops_per_token: float) -> Speed:
    """Peak × utilisation / FLOPs per token (PaLM, appendix B, solved for the tokens)."""
    return Speed(peak_gflops * 1e9 * mfu / flops_per_token, "assumed")


def resolve(
    budget: Budget,
    steps: int | None = None,
    *,
    tokens_per_step: int,
    flops_per_token: float | None = None,
    speed: Speed | None = None,
    prices: Prices | None = None,
) -> Resolved:
    """The number of whole steps that fit in every limit, at least 1.

    speed: needed for minutes and money. prices: a dacheng.ledger.Prices, needed for money (labour is not counted: a
    machine that trains alone is nobody's labour). Raises UsageError when no limit is given or one cannot be computed.
    """
    limits: list[tuple[int, str]] = []
    if steps is not None:
        if steps < 1:
            raise UsageError("must be at least 1", field="train.steps", value=steps, remedy="leave it out, or raise it")
        limits.append((steps, f"steps: {steps}"))
    for name, tokens, formula in _token_limits(budget, flops_per_token, speed, prices):
        if tokens_per_step < 1:
            raise UsageError(
                "this source does not say how many tokens a step has",
                field=f"train.budget.{name}",
                value=getattr(budget, name),
                remedy="give train.steps",
            )
        fitting = max(1, int(tokens / tokens_per_step))
        limits.append(
            (fitting, f"{name}: {formula} = {tokens:,.0f} tokens / {tokens_per_step:,} a step = {fitting} steps")
        )
    if not limits:
        raise UsageError(
            "nothing says how long to train",
            field="train.steps",
            remedy="set train.steps, or one of train.budget.tokens, flops, minutes, money",
        )
    return Resolved(min(limit for limit, _ in limits), [line for _, line in sorted(limits)])


def _token_limits(
    budget: Budget, flops_per_token: float | None, speed: Speed | None, prices: Prices | None
) -> list[tuple[str, float, str]]:
    """(field, tokens it pays for, formula) of each limit that is set."""
    found: list[tuple[str, float, str]] = []
    if budget.tokens is not None:
        found.append(("tokens", budget.tokens, f"{budget.tokens:,.0f}"))
    if budget.flops is not None:
        if not flops_per_token:
            raise _missing("flops", budget.flops, "the model does not say what a token costs")
        formula = f"{budget.flops:.3g} FLOPs / {flops_per_token:.3g} a token"
        found.append(("flops", budget.flops / flops_per_token, formula))
    if not budget.needs_speed:
        return found
    if speed is None:
        raise _missing("minutes", budget.minutes or budget.money, "the speed of training is unknown")
    rate = f"{speed.tokens_per_s:,.0f} tokens/s ({speed.kind})"
    if budget.minutes is not None:
        found.append(("minutes", budget.minutes * 60 * speed.tokens_per_s, f"{budget.minutes:g} min x {rate}"))
    if budget.money is not None:
        if prices is None:
            raise _missing("money", budget.money, "no prices are known")
        per_hour = 3600 * sum(prices.money(prices.watts, 1.0, 0.0).values())
        if per_hour <= 0:
            raise _missing("money", budget.money, "power and hardware are priced at 0, so it would never end")
        note = " (prices assumed)" if prices.assumed else ""
        formula = f"{budget.money:g} / {per_hour:.3g} {prices.currency} an hour{note} x {rate}"
        found.append(("money", budget.money / per_hour * 3600 * speed.tokens_per_s, formula))
    return found


def _missing(name: str, value: object, problem: str) -> UsageError:
    return UsageError(
        problem, field=f"train.budget.{name}", value=value, remedy="give train.steps or budget.tokens instead"
    )
