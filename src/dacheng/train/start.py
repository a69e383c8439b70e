"""How a run starts: the output locked, the newest checkpoint found and checked, the budget settled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dacheng.errors import DachengError, UsageError
from dacheng.formats.json_files import read_json, write_json
from dacheng.ledger import Prices
from dacheng.machine import measure
from dacheng.recipes import fingerprint
from dacheng.train import budget, collectives, environment, resume, work
from dacheng.train.budget import Resolved, Speed
from dacheng.train.checkpoint import Checkpoint
from dacheng.train.lock import OutputLock
from dacheng.train.rng import RngStreams

if TYPE_CHECKING:
    from dacheng.train.trainer import Trainer

BUDGET_FILE = "budget.json"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Rank 0 holds the output's lock. Raises Locked on every rank when somebody else does."""
    lock = OutputLock(out)
    collectives.on_first(lambda: (lock.__enter__(), None)[1])
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def begin(trainer: Trainer) -> None:
    """Everything before the first step. Warnings are told to the user; see Trainer.fit for what is raised."""
    config = trainer.config
    trainer.model.train()
    trainer.rng = RngStreams(config.seed, collectives.rank(), config.device)
    trainer.environment = environment.describe(
        trainer.precision, compiled=config.compile, deterministic=config.deterministic
    )
    trainer.recipe = resume.identity(trainer)
    checkpoint = _find(trainer)
    changed: list[str] = []
    if checkpoint is not None:
        changed = _take_up(trainer, checkpoint)
    trainer.budget = _settle_budget(trainer, checkpoint, changed)
    if trainer.state.step < trainer.steps:
        # Better now than hours later: weights, and at least one moment of those that are trained.
        trained = sum(p.numel() * p.element_size() for phase in trainer.phases for p in phase.parameters)
        nbytes = trained + sum(t.numel() * t.element_size() for t in resume.model_tensors(trainer).values())
        collectives.on_first(lambda: trainer.store.require_space(trainer.state.step + 1, nbytes))


def _find(trainer: Trainer) -> Checkpoint | None:
    """The checkpoint to go on from, verified by rank 0 and read by all."""
    store = trainer.store

    def search() -> dict[str, Any]:
        store.clean()
        if trainer.config.resume == "never":
            if store.steps():
                raise UsageError(
                    "the output already has checkpoints",
                    field="train.resume",
                    value="never",
                    remedy=f"choose another directory, remove {store.folder}, or use train.resume=auto",
                )
            return {"step": None, "warnings": []}
        found, warnings = store.latest()
        if found is None and trainer.config.resume == "must":
            raise UsageError(
                "there is no checkpoint to resume",
                field="train.resume",
                value="must",
                remedy="use train.resume=auto to begin, or name the directory of the run",
            )
        return {"step": None if found is None else found.step, "warnings": warnings}

    told = collectives.on_first(search)
    for warning in told["warnings"]:
        trainer.warn(warning)
    return None if told["step"] is None else store.load(told["step"], verify=False)


def _take_up(trainer: Trainer, checkpoint: Checkpoint) -> list[str]:
    """Checks that the checkpoint is of this recipe, restores it, names what differs. Returns the allowed changes."""
    changed = resume.check_identity(checkpoint.state["identity"], trainer.recipe, trainer.config.allow_changes)
    resume.restore(trainer, checkpoint)
    trainer.resumed_from = trainer.last_saved = checkpoint.step
    aside = collectives.on_first(lambda: [str(path) for path in trainer.store.set_aside_after(checkpoint.step)])
    for warning in [*changed, *(f"set aside as {path}" for path in aside)]:
        trainer.warn(warning)
    different = environment.differences(checkpoint.environment, trainer.environment)
    if different:
        trainer.warn("resumed, but not bit for bit: " + "; ".join(different))
    return changed


def _settle_budget(trainer: Trainer, checkpoint: Checkpoint | None, changed: list[str]) -> Resolved:
    """Steps, decided once: a resumed run keeps the number of its first start, unless the budget itself was changed."""
    if checkpoint is not None and not any(c.startswith(("config.steps", "config.budget")) for c in changed):
        return Resolved(**checkpoint.state["budget"])
    path = trainer.out / BUDGET_FILE
    recipe = fingerprint(trainer.recipe)
    kept = collectives.on_first(lambda: _kept_budget(path, recipe) if checkpoint is None else None)
    if kept is not None:
        return Resolved(**kept)
    resolved = _resolve(trainer)
    collectives.on_first(lambda: write_json(path, {"recipe": recipe, "resolved": resolved.to_dict()}))
    return resolved


def _kept_budget(path: Path, recipe: str) -> dict[str, Any] | None:
    """What a start of the same recipe settled on that was killed before its first checkpoint."""
    try:
        found = read_json(path)
        return found["resolved"] if found.get("recipe") == recipe else None
    except (DachengError, KeyError):
        return None


def _resolve(trainer: Trainer) -> Resolved:
    config, source = trainer.config, trainer.source
    traits: Any = getattr(trainer.model, "traits", None)
    length: Any = getattr(source, "context_length", None) or getattr(traits, "max_positions", 0)
    cost = work.flops_per_token(trainer.model, int(length))
    speed: Speed | None = None
    if config.budget.needs_speed and config.budget.assumed_mfu is None:
        speed = work.measure_speed(trainer)
    elif config.budget.needs_speed and cost:
        if trainer.machine is None:
            trainer.machine = measure(device=trainer.precision.device.type)
        peak = trainer.machine.peak_gflops(trainer.precision.dtype)
        speed = budget.assumed_speed(peak, config.budget.assumed_mfu or 0.0, cost)
    prices = trainer.ledger.prices if trainer.ledger is not None else None
    if prices is None and config.budget.money is not None:
        prices = Prices.load(None)
    # Rank 0 decides: measured speeds differ between ranks.
    resolved = budget.resolve(
        config.budget,
        config.steps,
        tokens_per_step=int(getattr(source, "tokens_per_step", 0)),
        flops_per_token=cost,
        speed=speed,
        prices=prices,
    )
    return Resolved(**collectives.from_first(resolved.to_dict()))
