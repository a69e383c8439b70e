"""From a budget to a plan: how large a model, how many tokens, how long, and by which formula.

The size follows Hoffmann et al. 2022 (Chinchilla): C = 6·N·D FLOPs are spent best where D/N is near 20. The actual cost
of each shape is the model's own (attention and head included). Every figure is marked measured (on this machine),
estimated (computed from others) or assumed (nobody measured it; say so where it is shown).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dacheng.errors import UsageError
from dacheng.ledger import Prices
from dacheng.machine import Machine
from dacheng.models.traits import DecoderTraits
from dacheng.plan.ladder import Rung, ladder, rung
from dacheng.plan.memory import TrainingMemory, fit_rows, training_memory
from dacheng.train.budget import Budget

__all__ = ["Budget", "Plan", "plan_decoder"]

TOKENS_PER_PARAMETER = 20.0  # Hoffmann et al. 2022, table 3
MAX_EPOCHS = 4.0  # repeated up to four times, tokens are worth nearly as much as new ones (Muennighoff et al. 2023)
# Share of the matmul peak that a training step reaches; ours on two cores of AVX2 reached 0.45 to 0.8, as loaded.
MFU = {"float32": 0.5, "bfloat16": 0.35}
LEAST_RATIO = 1.0  # fewer tokens than parameters: nothing worth planning
# The batch that was best for nanochat's 12 layers at 1.3e9 tokens, and how it grows (Bergsma et al. 2025, Power Lines).
BATCH_TOKENS, BATCH_AT_TOKENS, BATCH_EXPONENT = 2**19, 1.3e9, 0.383
LEAST_STEPS = 500  # the rule was fitted far above laptop budgets, where it would leave a hundred steps and no more
MICRO_TOKENS = 8192  # at once on a CPU: enough for the peak, small enough for the caches
WIDTH_OF_RATES = 768  # learning rates are stated for this width (nanochat's rule for all but Muon's matrices)
MEMORY_SHARE = 0.8  # of the machine's memory: the rest is the system's and the data's
_ROWS = 4096  # more rows at once are of no use


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to train. tokens = steps × batch_tokens; batch_tokens = batch_rows × micro_batches × context_length.

    flops: of all tokens, forward and backward. minutes: of training alone. epochs: over unique_tokens (None where these
    are unknown). lr_scale: factor on AdamW's learning rates stated for width 768. joules and money: of training, at the
    price file's watts. kinds: for each figure measured, estimated or assumed. formula: the derivation as lines of text.
    """

    traits: DecoderTraits
    context_length: int
    tokens: int
    steps: int
    batch_tokens: int
    batch_rows: int
    micro_batches: int
    flops: float
    minutes: float
    epochs: float | None
    params: dict[str, int]
    memory: TrainingMemory
    gflops: float
    mfu: float
    dtype: str
    lr_scale: float
    joules: float
    money: dict[str, float]
    currency: str
    kinds: dict[str, str]
    formula: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"traits": self.traits.to_dict(), "memory": self.memory.to_dict()}


@dataclass(frozen=True, slots=True)
class _Speed:
    gflops: float
    mfu: float
    dtype: str

    @property
    def flops(self) -> float:
        """FLOPs per second of training."""
        return self.gflops * 1e9 * self.mfu


@dataclass(frozen=True, slots=True)
class _Means:
    """What there is to spend: FLOPs, tokens, FLOPs per second; and the tokens wanted per parameter."""

    flops: float
    tokens: float
    speed: float
    ratio: float
    lines: list[str]
    tokens_given: bool  # the budget says how many tokens, and nothing else


def plan_decoder(
    budget: Budget,
    machine: Machine,
    vocab_size: int,
    context_length: int,
    *,
    unique_tokens: float | None = None,
    max_epochs: float = MAX_EPOCHS,
    tokens_per_parameter: float = TOKENS_PER_PARAMETER,
    optimizer: str = "adamw",
    dtype: str | None = None,
    traits: Mapping[str, Any] | None = None,
    prices: Prices | None = None,
    memory_bytes: int | None = None,
) -> Plan:
    """The decoder to train for `budget` on `machine`: the rung of the ladder nearest to `tokens_per_parameter`.

    budget: its smallest limit counts; assumed_mfu replaces our assumption. unique_tokens × max_epochs bounds the tokens
    (None: unbounded); a model then grows until the data's tokens cost the budget, down to a quarter of the ratio.
    dtype: of compute (None: what the machine is fast at). traits: see `ladder.ladder`. memory_bytes: what training may
    take (None: 80% of the machine's). Shapes that don't fit with one row at once are not planned.

    Raises UsageError for a budget that is empty or too small, and where memory or data are: each names what would fit.
    """
    prices = Prices.load(None) if prices is None else prices
    for name, value in (("max_epochs", max_epochs), ("tokens_per_parameter", tokens_per_parameter)):
        if not value > 0:
            raise UsageError("must be above 0", field=name, value=value, remedy="leave it out")
    dtype = machine.fast_dtype if dtype is None else dtype
    mfu = budget.assumed_mfu or MFU.get(dtype, MFU["bfloat16"])
    speed = _Speed(machine.peak_gflops(dtype), mfu, dtype)
    means = _means(budget, speed, prices, unique_tokens, max_epochs, tokens_per_parameter)
    room = int(MEMORY_SHARE * machine.memory_bytes) if memory_bytes is None else memory_bytes

    def rows_that_fit(shape: DecoderTraits) -> int:
        return fit_rows(shape, room, context_length=context_length, largest=_ROWS, optimizer=optimizer, dtype=dtype)

    shapes = ladder(vocab_size, context_length, traits)
    if not rows_that_fit(shapes[0]):
        least = training_memory(
            shapes[0], batch_rows=1, context_length=context_length, optimizer=optimizer, dtype=dtype
        )
        raise UsageError(
            f"not even width {shapes[0].width} with {shapes[0].layers} layers fits in memory",
            field="memory_bytes",
            value=room,
            remedy=f"it takes about {least.total:,} bytes (estimated): shorten the context, or free some memory",
        )
    chosen, note = _choose(shapes, context_length, means, rows_that_fit)
    tokens = min(means.tokens, means.flops / chosen.flops_per_token)
    batch_rows, micro_batches, batch_line = _batch(tokens, context_length, rows_that_fit(chosen.traits))
    memory = training_memory(
        chosen.traits, batch_rows=batch_rows, context_length=context_length, optimizer=optimizer, dtype=dtype
    )
    lines = [*means.lines, *_size_lines(chosen, means.ratio, note), batch_line]
    return _plan(
        chosen, tokens, context_length, (batch_rows, micro_batches), speed, prices, unique_tokens, memory, lines
    )


def _plan(
    chosen: Rung,
    tokens: float,
    context_length: int,
    batch: tuple[int, int],
    speed: _Speed,
    prices: Prices,
    unique_tokens: float | None,
    memory: TrainingMemory,
    lines: list[str],
) -> Plan:
    """Whole steps within `tokens`, and what they cost. batch: rows of a micro-batch, micro-batches of a step."""
    batch_tokens = batch[0] * batch[1] * context_length
    steps = max(1, int(tokens / batch_tokens))
    flops = steps * batch_tokens * chosen.flops_per_token
    seconds = flops / speed.flops
    joules = seconds * prices.watts
    plan = Plan(
        traits=chosen.traits,
        context_length=context_length,
        tokens=steps * batch_tokens,
        steps=steps,
        batch_tokens=batch_tokens,
        batch_rows=batch[0],
        micro_batches=batch[1],
        flops=flops,
        minutes=seconds / 60,
        epochs=steps * batch_tokens / unique_tokens if unique_tokens else None,
        params=chosen.params,
        memory=memory,
        gflops=speed.gflops,
        mfu=speed.mfu,
        dtype=speed.dtype,
        lr_scale=math.sqrt(WIDTH_OF_RATES / chosen.traits.width),
        joules=joules,
        money={name: cost for name, cost in prices.money(joules, seconds, 0.0).items() if name != "labour"},
        currency=prices.currency,
        kinds=_kinds(prices),
        formula=lines,
    )
    lines.extend(_cost_lines(plan, chosen, prices))
    return plan


def _means(
    budget: Budget,
    speed: _Speed,
    prices: Prices,
    unique_tokens: float | None,
    max_epochs: float,
    ratio: float,
) -> _Means:
    rate = f"{speed.gflops:,.0f} GFLOPS {speed.dtype} (measured) x MFU {speed.mfu:g} (assumed)"
    limits: list[tuple[float, str]] = []
    if budget.flops is not None:
        limits.append((budget.flops, f"C = {budget.flops:.3g} FLOPs (given)"))
    if budget.minutes is not None:
        flops = speed.flops * budget.minutes * 60
        limits.append((flops, f"C = {rate} x {budget.minutes * 60:g} s = {flops:.3g} FLOPs (estimated)"))
    if budget.money is not None:
        per_second = sum(prices.money(prices.watts, 1.0, 0.0).values())
        if per_second <= 0:
            raise UsageError(
                "power and hardware are priced at 0", field="budget.money", remedy="budget minutes instead"
            )
        flops = speed.flops * budget.money / per_second
        known = "assumed prices" if prices.assumed else "stated prices"
        paid = f"{budget.money:g} / {3600 * per_second:.3g} {prices.currency} an hour ({known})"
        limits.append((flops, f"C = {rate} x {paid} = {flops:.3g} FLOPs (estimated)"))
    if not limits and budget.tokens is None:
        raise UsageError("the budget is empty", field="budget", remedy="give minutes, flops, tokens or money")
    lines = [min(limits)[1]] if limits else []
    tokens = math.inf
    if unique_tokens is not None:
        if not unique_tokens > 0:
            raise UsageError("must be above 0", field="unique_tokens", value=unique_tokens, remedy="leave it out")
        tokens = unique_tokens * max_epochs
        lines.append(f"D <= {unique_tokens:,.0f} unique tokens x {max_epochs:g} epochs = {tokens:,.0f} tokens")
    if budget.tokens is not None:
        if not limits and budget.tokens > tokens:
            raise UsageError(
                "the data does not have that many tokens",
                field="budget.tokens",
                value=budget.tokens,
                remedy=f"at most {tokens:.0f}, or raise max_epochs, or add data",
            )
        tokens = min(tokens, budget.tokens)
        lines.append(f"D <= {budget.tokens:,.0f} tokens (given)")
    return _Means(min(limits)[0] if limits else math.inf, tokens, speed.flops, ratio, lines, tokens_given=not limits)


def _choose(shapes: list[DecoderTraits], context_length: int, means: _Means, rows_that_fit: Any) -> tuple[Rung, str]:
    """The rung to train, and what limited it. Costs are computed upwards until the rungs are far too large."""
    rungs: list[Rung] = []
    limit = ""
    for shape in shapes:
        if rungs and not rows_that_fit(shape):
            limit = "memory"
            break
        rungs.append(rung(shape, context_length))
        if _tokens(rungs[-1], means) / rungs[-1].multiplied < means.ratio / 16:
            break
    best = min(rungs, key=lambda r: abs(math.log(_tokens(r, means) / r.multiplied / means.ratio)))
    _require_enough(best, means)
    note = "nearest to the ratio"
    if not means.tokens_given and means.flops / best.flops_per_token > means.tokens:
        # The data is the limit: spend what is left of the FLOPs on parameters, within reason.
        paid = [
            r
            for r in rungs
            if means.flops / r.flops_per_token >= means.tokens and means.tokens / r.multiplied >= means.ratio / 4
        ]
        best = max([best, *paid], key=lambda r: r.multiplied)
        left = 1 - means.tokens * best.flops_per_token / means.flops
        note = f"the data is the limit: the largest it can pay for; {max(0.0, left):.0%} of the FLOPs stay unused"
    elif limit == "memory" and best is rungs[-1]:
        note = "memory is the limit: the largest that fits"
    elif len(shapes) == 1:
        note = "the shape is given"
    return best, note


def _tokens(r: Rung, means: _Means) -> float:
    return min(means.tokens, means.flops / r.flops_per_token)


def _require_enough(best: Rung, means: _Means) -> None:
    tokens, least = _tokens(best, means), LEAST_RATIO * best.multiplied
    if tokens >= least:
        return
    seconds = least * best.flops_per_token / means.speed
    raise UsageError(
        f"the budget pays for {tokens:,.0f} tokens of the smallest model that could take them "
        f"({best.multiplied:,} parameters): fewer than one a parameter",
        field="budget",
        value=f"{means.flops:.3g} FLOPs, {means.tokens:.3g} tokens",
        remedy=f"the least that makes sense is {least:,.0f} tokens = {least * best.flops_per_token:.3g} FLOPs = "
        f"{seconds / 60:.2g} minutes here, or a smaller vocabulary",
    )


def _batch(tokens: float, context_length: int, rows_at_once: int) -> tuple[int, int, str]:
    """Rows of a micro-batch, micro-batches of a step, and the rule as text. Rows of a step are a power of two."""
    rule = BATCH_TOKENS * (tokens / BATCH_AT_TOKENS) ** BATCH_EXPONENT
    bound = tokens / LEAST_STEPS
    rows = 2 ** max(0, min(round(math.log2(rule / context_length)), math.floor(math.log2(bound / context_length))))
    micro = 1
    while micro * 2 <= min(rows, rows_at_once) and micro * 2 * context_length <= MICRO_TOKENS:
        micro *= 2
    line = (
        f"batch = 2^19 x (D / 1.3e9)^{BATCH_EXPONENT} = {rule:,.0f} tokens, at most D / {LEAST_STEPS} = {bound:,.0f} "
        f"(assumed): {rows} rows x {context_length} = {rows * context_length:,} tokens a step, {micro} rows at once"
    )
    return micro, rows // micro, line


def _kinds(prices: Prices) -> dict[str, str]:
    priced = "assumed" if prices.assumed else "estimated"
    estimated = ("flops", "minutes", "tokens", "steps", "epochs", "memory")
    return dict.fromkeys(estimated, "estimated") | {
        "gflops": "measured",
        "mfu": "assumed",
        "batch_tokens": "assumed",
        "lr_scale": "assumed",
        "joules": priced,
        "money": priced,
    }


def _size_lines(chosen: Rung, ratio: float, note: str) -> list[str]:
    t = chosen.traits
    lines = [
        f"C = 6 N D with D = {ratio:g} N (Hoffmann et al. 2022; assumed); N counts the matrices and the head",
        f"model: layers {t.layers} x width {t.width}, {t.heads} heads of {t.head_size}: N = {chosen.multiplied:,}, "
        f"{chosen.params['total']:,} parameters in all, {chosen.vocabulary_share:.0%} of them vocabulary ({note})",
    ]
    if chosen.vocabulary_share > 0.5:
        lines.append(
            f"more than half of it is vocabulary: fewer than {t.vocab_size:,} tokens would leave more to layers"
        )
    return lines


def _cost_lines(plan: Plan, chosen: Rung, prices: Prices) -> list[str]:
    known = "assumed" if prices.assumed else "stated"
    cost = " + ".join(f"{value:.3g} {name}" for name, value in plan.money.items())
    lines = [
        f"D = {plan.steps:,} steps x {plan.batch_tokens:,} = {plan.tokens:,} tokens, "
        f"{plan.tokens / chosen.multiplied:.1f} per parameter"
        + (f", {plan.epochs:.2f} epochs" if plan.epochs is not None else ""),
        f"cost: {chosen.flops_per_token:.4g} FLOPs a token (attention and head included; 6 N = "
        f"{6 * chosen.multiplied:.4g}) x D = {plan.flops:.3g} FLOPs (estimated)",
        f"time: {plan.flops:.3g} / ({plan.gflops:,.0f}e9 x {plan.mfu:g}) = {plan.minutes:.2f} minutes (estimated)",
        f"price: {plan.joules / 3.6e6:.3g} kWh at {prices.watts:g} W; {cost} {plan.currency} ({known} prices)",
        f"learning rates of width 768 x sqrt(768 / {plan.traits.width}) = {plan.lr_scale:.3g} (assumed)",
    ]
    return lines + plan.memory.lines()
