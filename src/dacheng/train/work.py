"""How much a step computes, and how fast this machine does it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from dacheng.train import collectives, gradients, resume
from dacheng.train.budget import Resolved, Speed
from dacheng.train.report import RunState, StepReport

if TYPE_CHECKING:
    from dacheng.train.trainer import Trainer

_LONG_STEP_S = 10.0
_MOST_TIMED, _TIMING_S = 9, 6.0  # steps, and seconds, that a measurement of speed takes


def flops_per_token(model: nn.Module, context_length: int) -> float | None:
    """Forward and backward by the model's own formula, or None for a model that has none."""
    formula = getattr(model, "flops", None)
    return float(formula(context_length, training=True)) if callable(formula) else None


def count(trainer: Trainer, micro_batches: Sequence[Any], report: StepReport) -> None:
    """Fills in tokens (positions, of all ranks) and FLOPs (of every update). Batches without `tokens` count nothing."""
    shapes = [tuple(batch.tokens.shape) for batch in micro_batches if hasattr(batch, "tokens")]
    costs = trainer.token_costs
    for _, length in (shape for shape in shapes if shape[-1] not in costs):
        costs[length] = flops_per_token(trainer.model, length) or 0.0
    tokens = float(sum(rows * length for rows, length in shapes))
    flops = sum(rows * length * costs[length] for rows, length in shapes)
    total = gradients.sum_over_ranks([{"tokens": tokens, "flops": flops}])
    updates = sum(phase.repeats for phase in trainer.phases)
    report.tokens, report.flops = int(total["tokens"]), total["flops"] * updates


def measure_speed(trainer: Trainer) -> Speed:
    """Tokens per second of real steps: the median of several, after one that allocates and warms up (which stands alone
    when it takes over ten seconds). Everything a step changes is put back."""
    tensors = {name: value.clone() for name, value in resume.model_tensors(trainer).items()}  # frozen ones stay
    optimizers = [{k: v.clone() for k, v in phase.optimizer.state_dict().items()} for phase in trainer.phases]
    streams, source = trainer.rng.state_dict(), trainer.source.state_dict()
    scaler = trainer.precision.scaler.state_dict() if trainer.precision.scaler else None
    state, budget = trainer.state, trainer.budget
    try:
        trainer.state, trainer.budget = RunState(step=state.step), Resolved(state.step + 1 + _MOST_TIMED, [])
        report = trainer.train_step()
        seconds, spent = [report.seconds], 0.0
        if collectives.from_first(report.seconds) < _LONG_STEP_S:
            seconds = []
            while len(seconds) < _MOST_TIMED and spent < _TIMING_S:
                report = trainer.train_step()
                seconds.append(report.seconds)
                spent = collectives.from_first(spent + report.seconds)
    finally:
        trainer.state, trainer.budget = state, budget
        nn.Module.load_state_dict(trainer.model, tensors, strict=False)
        for phase, saved in zip(trainer.phases, optimizers):
            phase.optimizer.load_state_dict(saved)
        trainer.rng.load_state_dict(streams)
        trainer.source.load_state_dict(source)
        if trainer.precision.scaler is not None and scaler is not None:
            trainer.precision.scaler.load_state_dict(scaler)
    return Speed(collectives.from_first(report.tokens / statistics.median(seconds)), "measured")
