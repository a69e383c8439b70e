"""From a trainer to a checkpoint and back, and whether a checkpoint belongs to the recipe that wants to resume it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dacheng.errors import DachengError, UsageError
from dacheng.formats.json_files import plain
from dacheng.nn.packed import Packed, PackedEmbedding
from dacheng.recipes import to_dict
from dacheng.train import collectives
from dacheng.train.checkpoint import Checkpoint
from dacheng.train.report import RunState

if TYPE_CHECKING:
    from dacheng.train.trainer import Trainer


def identity(trainer: Trainer) -> dict[str, Any]:
    """Everything that decides the weights, flat: "config.clip_norm", "model.embed.weight", "data", "phases.main…"."""
    traits: Any = getattr(trainer.model, "traits", None)
    frozen = frozen_parameters(trainer)
    found: dict[str, Any] = {
        "config": trainer.config.identity(),
        "data": getattr(trainer.source, "fingerprint", None),
        "model": {name: f"{p.dtype} {list(p.shape)}" for name, p in trainer.model.named_parameters()},
        "model.traits": traits.to_dict() if hasattr(traits, "to_dict") else None,
        "model.frozen": digest(frozen) if frozen else None,
        "phases": [phase.name for phase in trainer.phases],
    }
    for phase in trainer.phases:
        found[f"phases.{phase.name}.objective"] = {
            "class": type(phase.objective).__qualname__,
            **_simple_attributes(phase.objective),
        }
        found[f"phases.{phase.name}.repeats"] = phase.repeats
        found[f"phases.{phase.name}.parameters"] = len(phase.named)
        found[f"phases.{phase.name}.optimizer"] = [
            {key: value for key, value in group.items() if key not in ("params", "lr") and _is_simple(value)}
            for group in phase.optimizer.param_groups
        ]
    return _flat(plain(found))


def check_identity(saved: Mapping[str, Any], now: Mapping[str, Any], allowed: Sequence[str]) -> list[str]:
    """The allowed differences, in words. Raises UsageError naming the first that is not allowed.

    allowed: names of `identity`, or their beginnings up to a dot ("config.schedule" allows all of it).
    """
    warnings = []
    for name in sorted(set(saved) | set(now)):
        before, after = saved.get(name), now.get(name)
        if before == after:
            continue
        if not any(name == allow or name.startswith(f"{allow}.") for allow in allowed):
            raise UsageError(
                f"the recipe has changed since the checkpoint: {name} was {before!r}",
                field=name,
                value=after,
                remedy=f"put it back, train into another directory, or allow it: train.allow_changes=[{name}]",
            )
        warnings.append(f"{name} was {before!r}, is {after!r} (allowed)")
    return warnings


def frozen_parameters(trainer: Trainer) -> dict[str, Tensor]:
    """Parameters that no phase moves, and packed weights, which nobody can: they come from where the model was loaded,
    not from the checkpoint."""
    moved = {id(p) for phase in trainer.phases for p in phase.parameters}
    parameters = trainer.model.named_parameters(remove_duplicate=False)  # by all names of a tied weight
    frozen = {name: p.detach() for name, p in parameters if id(p) not in moved}
    for prefix, module in trainer.model.named_modules():
        if isinstance(module, Packed | PackedEmbedding):
            frozen |= {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
    return frozen


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names and bytes."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode())
        total.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def model_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """What a checkpoint keeps of the model: its state without the frozen parameters."""
    frozen = frozen_parameters(trainer)
    return {name: value for name, value in trainer.model.state_dict().items() if name not in frozen}


def optimizer_tensors(trainer: Trainer, rng_of_ranks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Names are "phase/<phase>/<parameter>/<entry>", and "rng/<rank>/<stream>" of every rank."""
    tensors = {
        f"phase/{phase.name}/{key}": value
        for phase in trainer.phases
        for key, value in phase.optimizer.state_dict().items()
    }
    for rank, streams in enumerate(rng_of_ranks):
        tensors.update({f"rng/{rank}/{name}": state for name, state in streams.items()})
    return tensors


def gather_rng(trainer: Trainer) -> list[dict[str, Tensor]]:
    """The random states of every rank, on every rank."""
    own = {name: state.tolist() for name, state in trainer.rng.state_dict().items()}
    ranks = collectives.gather(own)
    return [{name: torch.tensor(s, dtype=torch.uint8) for name, s in streams.items()} for streams in ranks]


def plain_state(trainer: Trainer, sources: list[Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """state.json: what is not a tensor. Raises DachengError naming what JSON cannot hold."""
    return plain(
        {
            "run": trainer.state.to_dict(),
            "budget": trainer.budget.to_dict(),
            "identity": recipe,
            "sources": sources,
            "scaler": trainer.precision.scaler.state_dict() if trainer.precision.scaler else None,
            "callbacks": {callback.name: callback.state_dict() for callback in trainer.callbacks},
        }
    )


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Puts a checkpoint into the trainer: weights, optimizers, random streams, source, callbacks and counters.

    Raises DachengError when a tensor is missing, unknown or of another shape. What a callback had kept that is no
    longer there is named.
    """
    state = checkpoint.state
    _load_model(trainer, checkpoint.model_tensors())
    tensors = checkpoint.optimizer_tensors()
    for phase in trainer.phases:
        phase.optimizer.load_state_dict(_below(tensors, f"phase/{phase.name}/"))
    streams = _below(tensors, f"rng/{collectives.rank()}/")
    if streams:  # a rank that is new keeps its fresh streams; the changed world size is named with the environment
        trainer.rng.load_state_dict({name: value.clone() for name, value in streams.items()})
    if state["identity"].get("data") == trainer.recipe.get(
        "data"
    ):  # changed data, where allowed, has no place to go to
        rank, sources = collectives.rank(), state["sources"]
        trainer.source.load_state_dict(sources[rank] if len(sources) == collectives.world_size() else sources[0])
    if trainer.precision.scaler is not None and state["scaler"] is not None:
        trainer.precision.scaler.load_state_dict(state["scaler"])
    kept = dict(state["callbacks"])
    for callback in trainer.callbacks:
        if callback.name in kept:
            callback.load_state_dict(kept.pop(callback.name))
    for name in (name for name, value in kept.items() if value):
        trainer.warn(f"the checkpoint has the state of a callback that is gone: {name}")
    trainer.state = RunState.from_dict(state["run"])


def _load_model(trainer: Trainer, tensors: dict[str, Tensor]) -> None:
    wanted = model_tensors(trainer)
    for name in sorted(set(wanted) ^ set(tensors)):
        raise DachengError(
            "the checkpoint's model has other tensors than this one",
            field=name,
            value="only in the checkpoint" if name in tensors else "only in the model",
            remedy="build the model as it was, or train into another directory",
        )
    nn.Module.load_state_dict(trainer.model, tensors, strict=False)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _simple_attributes(instance: Any) -> dict[str, Any]:
    """Public attributes that are plain data: the knobs of an objective, dataclass or not, with slots or not."""
    names = list(getattr(instance, "__dict__", {})) + list(getattr(type(instance), "__dataclass_fields__", {}))
    values = {name: getattr(instance, name) for name in dict.fromkeys(names) if not name.startswith("_")}
    return {name: value for name, value in values.items() if _is_simple(value)}


def _is_simple(value: Any) -> bool:
    try:
        json.dumps(to_dict(value))
    except (TypeError, ValueError):
        return False
    return True


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat.update(_flat(item, f"{prefix}.{name}" if prefix else name))
    return flat
