"""The one training loop: accumulation, clipping, schedule, checkpoints, resume. Methods bring objective and source."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from dacheng.errors import DachengError, UsageError
from dacheng.formats.json_files import plain
from dacheng.ledger import Ledger
from dacheng.machine import Machine, measure
from dacheng.objectives.base import StepContext
from dacheng.train import collectives, gradients, resume, rng, runtime, schedules, start, work
from dacheng.train.budget import Resolved
from dacheng.train.callbacks import Callback, LedgerWriter
from dacheng.train.checkpoint import CheckpointStore
from dacheng.train.config import TrainConfig
from dacheng.train.gradients import Totals
from dacheng.train.interrupts import Interrupted, InterruptGuard
from dacheng.train.logs import JsonlLog
from dacheng.train.phases import BoundPhase, Phase, bind
from dacheng.train.precision import choose
from dacheng.train.report import RunState, StepReport, TrainResult

log = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 10
MIN_LOSS_SCALE = 1.0


class NonFinite(DachengError):
    """A loss or a gradient is NaN or infinite, and skipping the step did not help or was not wanted."""


class Trainer:
    """Trains `model` by `phases` on the micro-batches of `source`, into the directory `out`.

    source: next(step, model, weights_version) -> micro-batches of this rank; state_dict, load_state_dict, fingerprint,
    tokens_per_step (see dacheng.data). ledger: books the cost. machine: a dacheng.machine.Machine, measured if needed.
    With torch.distributed initialised each rank holds the whole model, gradients are summed and rank 0 writes.
    """

    rng: rng.RngStreams
    environment: dict[str, Any]
    recipe: dict[str, Any]

    def __init__(
        self,
        model: nn.Module,
        phases: Sequence[Phase],
        source: Any,
        callbacks: Sequence[Callback],
        config: TrainConfig,
        out: Path,
        ledger: Ledger | None = None,
        machine: Machine | None = None,
    ) -> None:
        """Raises UsageError for phases, optimizers, callbacks or a precision that cannot be."""
        self.model, self.source, self.config, self.out = model, source, config, Path(out)
        runtime.prepare(model, config)
        if machine is None and config.precision == "auto":
            machine = measure(device=torch.device(config.device).type)
        self.ledger, self.machine = ledger, machine
        self.precision = choose(config.precision, config.device, machine)
        self.phases: list[BoundPhase] = bind(phases, model, config.optimizer)
        self.callbacks = [JsonlLog(), *([LedgerWriter(ledger)] if ledger is not None else []), *callbacks]
        names = [callback.name for callback in self.callbacks]
        if len(set(names)) < len(names):
            raise UsageError("two callbacks of one name", field="callbacks", value=names, remedy="name them apart")
        self.store = CheckpointStore(self.out, config.keep_last, config.keep_every)
        self.state, self.budget = RunState(), Resolved(0, [])
        self.warnings: list[str] = []
        self.token_costs: dict[int, float] = {}  # FLOPs of a token, by context length
        self.resumed_from: int | None = None
        self.last_saved = 0
        self._fitted = False

    @property
    def steps(self) -> int:
        """Of the whole run, once `fit` has settled the budget."""
        return self.budget.steps

    @property
    def at_end(self) -> bool:
        """The step just done is the last: of the budget, or because the wall clock has run out."""
        return self.state.step >= self.steps or self._late

    @property
    def _late(self) -> bool:
        limit = self.config.max_minutes
        return limit is not None and self.state.wall_s >= 60 * limit

    # --- the run ------------------------------------------------------------------------------------------------------
    def fit(self) -> TrainResult:
        """Trains until the budget is spent, going on from the newest intact checkpoint in `out`.

        A trainer fits once; to go on, make another. Raises Locked when another process writes there, UsageError when
        the checkpoint is of another recipe, Interrupted after Ctrl-C or SIGTERM (all is saved: the same call goes on),
        NonFinite, and DachengError when a checkpoint cannot be written.
        """
        if self._fitted:
            raise DachengError("this trainer has already been used", field="fit", remedy="make another one to go on")
        self._fitted = True
        with ExitStack() as stack:
            stack.enter_context(start.locked(self.out))
            stack.enter_context(runtime.numerics(self.config))
            guard = stack.enter_context(InterruptGuard())
            for callback in self._active_callbacks():
                stack.push(_closing(callback))
            start.begin(self)
            began = time.perf_counter() - self.state.wall_s
            self._tell("on_start")
            while (reason := self._why_stop(guard)) is None:
                report = self.train_step()
                self.state.wall_s = collectives.from_first(time.perf_counter() - began)
                self._tell("on_step_end", report)
                if self.state.step % self.config.save_every == 0:
                    self.save()
            if self.state.step > self.last_saved:
                self.save()
            if reason.startswith("SIG"):
                raise Interrupted(
                    f"stopped by {reason}; all is saved, up to step {self.state.step} of {self.steps}",
                    field=str(self.out),
                    remedy="run the same command again to go on",
                )
            result = self._result(reason)
            self._tell("on_end", result)
            return result

    def train_step(self) -> StepReport:
        """One step: the source's micro-batches through every phase. A step whose update is skipped counts too."""
        began, state = time.perf_counter(), self.state
        report = StepReport(step=state.step + 1, total_steps=self.steps)
        micro_batches = [
            batch.to(self.precision.device) if hasattr(batch, "to") else batch
            for batch in self.source.next(state.step, self.model, state.weights_version)
        ]
        ctx = StepContext(step=state.step, training=True, generator=self.rng.generator("dropout"))
        for phase in self.phases:
            for _ in range(phase.repeats):
                self._update(phase, micro_batches, ctx, report)
        work.count(self, micro_batches, report)
        report.seconds = time.perf_counter() - began
        state.step, state.loss = report.step, report.loss
        state.tokens, state.flops = state.tokens + report.tokens, state.flops + report.flops
        state.seconds += report.seconds
        return report

    def _update(self, phase: BoundPhase, micro_batches: Sequence[Any], ctx: StepContext, report: StepReport) -> None:
        """Gradient, clipping, optimizer: one update of one phase's parameters, or a reason why not in the report."""
        for p in self.model.parameters():  # of all phases: another's loss leaves gradients that nobody wants
            p.grad = None
        totals = gradients.accumulate(self.model, phase.objective, micro_batches, ctx, self.precision, phase.parameters)
        norm = gradients.grad_norm(phase.parameters)
        phase.optimizer.set_factor(schedules.factor(self.config.schedule, self.state.step, self.steps))
        prefix = "" if len(self.phases) == 1 else f"{phase.name}."
        report.add(phase.name, totals, norm, phase.optimizer.learning_rates(), prefix)
        if not self._is_sound(phase, totals, norm, report):
            return
        if self.config.clip_norm is not None:
            gradients.clip(phase.parameters, norm, self.config.clip_norm)
        phase.optimizer.step()
        self.state.weights_version += 1
        self.state.skipped_in_a_row = 0

    def save(self) -> Path:
        """Writes a checkpoint of the step just done. Raises DachengError on every rank when it cannot be written."""
        streams = resume.gather_rng(self)
        sources = collectives.gather(plain(self.source.state_dict()))

        def write() -> str:
            optimizer = resume.optimizer_tensors(self, streams)
            state = resume.plain_state(self, sources, self.recipe)
            return str(self.store.save(self.state.step, resume.model_tensors(self), optimizer, state, self.environment))

        path = Path(collectives.on_first(write))
        self.last_saved = self.state.step
        self._tell("on_checkpoint", path)
        return path

    # --- for callbacks ------------------------------------------------------------------------------------------------
    @contextmanager
    def aside(self) -> Iterator[None]:
        """Evaluation mode, no gradients, and random numbers that are not training's."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with torch.no_grad(), rng.isolated():
                yield
        finally:
            for module, training in modes:
                module.training = training

    def publish(self, metrics: dict[str, float]) -> None:
        """What a callback has measured: kept for the result, and told to the other callbacks."""
        self.state.metrics.update(metrics)
        self._tell("on_evaluate", metrics)

    def stop(self, reason: str) -> None:
        """Ends the run after this step, for good: a resume does not go on."""
        self.state.stopped = reason

    def say(self, text: str) -> None:
        self._tell("on_message", text)

    def warn(self, text: str) -> None:
        """Logged, and kept in the result."""
        self.warnings.append(text)
        if collectives.rank() == 0:
            log.warning("%s", text)

    # --- inside -------------------------------------------------------------------------------------------------------
    def _active_callbacks(self) -> list[Callback]:
        return [callback for callback in self.callbacks if callback.every_rank or collectives.rank() == 0]

    def _tell(self, occasion: str, *arguments: Any) -> None:
        for callback in self._active_callbacks():
            getattr(callback, occasion)(self, *arguments)

    def _why_stop(self, guard: InterruptGuard) -> str | None:
        """A reason that all ranks agree on, or None to go on. A signal comes first: it must never be swallowed."""
        reasons = [reason for reason in collectives.gather(guard.requested or self.state.stopped) if reason is not None]
        signals = [reason for reason in reasons if reason.startswith("SIG")]
        if signals:
            return signals[0]
        if self.state.step >= self.steps:
            return "finished"
        if reasons:
            return reasons[0]
        return f"wall clock: {self.config.max_minutes:g} minutes" if self._late else None

    def _is_sound(self, phase: BoundPhase, totals: Totals, norm: float, report: StepReport) -> bool:
        """False, with the reason in the report and counted, when the update must not be made. Raises NonFinite when
        the config says stop or skipping goes on for too long."""
        bad_terms = [f"{name} is {value}" for name, value in totals.terms.items() if not math.isfinite(value)]
        scaler = self.precision.scaler
        if scaler is not None and not bad_terms:  # a NaN loss is not the scale's doing
            scaler.update(math.isfinite(norm))
        if not bad_terms and math.isfinite(norm):
            if any(p.grad is not None for p in phase.parameters):
                return True
            report.skipped = f"{phase.name}: nothing in the batch to learn from"
            self.state.empty_steps += 1
            return False
        where = bad_terms or [f"gradient of {name}" for name in gradients.non_finite_names(phase.named)]
        report.skipped = f"{phase.name}: not finite: " + ", ".join(where or ["the gradient's norm"])
        self.state.skipped_steps += 1
        if scaler is not None and not bad_terms and scaler.scale >= MIN_LOSS_SCALE:
            report.skipped += f" (loss scale now {scaler.scale:g})"
            return False
        self.state.skipped_in_a_row += 1
        if self.config.non_finite == "stop" or self.state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise NonFinite(
                f"step {report.step}: {report.skipped}"
                + (f", {self.state.skipped_in_a_row} steps in a row" if self.state.skipped_in_a_row > 1 else ""),
                field="loss",
                value=totals.loss,
                remedy="lower the learning rate, lengthen the warmup, or look at the data of that step",
            )
        self.warn(f"step {report.step} skipped: {report.skipped}")
        return False

    def _result(self, reason: str) -> TrainResult:
        state = self.state
        return TrainResult(
            steps=state.step,
            tokens=state.tokens,
            flops=state.flops,
            seconds=state.seconds,
            wall_s=state.wall_s,
            loss=state.loss,
            metrics=dict(state.metrics),
            stopped=reason,
            skipped_steps=state.skipped_steps,
            empty_steps=state.empty_steps,
            resumed_from=self.resumed_from,
            checkpoint=self.store.path(self.last_saved) if self.last_saved else None,
            budget=list(self.budget.basis),
            warnings=self.warnings,
        )


def _closing(callback: Callback) -> Callable[..., None]:
    """For an ExitStack: closes the callback with the error that ended the run, and never swallows it."""

    def close(_kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        callback.close(error)

    return close
