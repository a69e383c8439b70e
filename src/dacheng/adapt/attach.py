"""Putting adapters around the linear maps of a model, and taking them off again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dacheng.adapt.counts import adapted_modules
from dacheng.errors import DachengError, UsageError
from dacheng.formats.peft.names import PeftNames
from dacheng.models.decoder import Decoder
from dacheng.nn.linear import Dense
from dacheng.nn.lora import BASE, AdapterRows, LoRA, LoRAWeights
from dacheng.nn.lora_config import ALL_LINEAR, Adapter, LoRAConfig, named
from dacheng.nn.packed import Packed


def add_lora(model: Decoder, config: LoRAConfig | None = None, *, generator: torch.Generator | None = None) -> Adapter:
    """Puts a fresh adapter around the targets, freezes everything else, and sends every row through it.

    The model's numbers are at first those of the base. Its Packed maps may stay packed (QLoRA, Dettmers et al. 2023).
    Raises UsageError for a target that no module has, or that is no linear map.
    """
    config = LoRAConfig() if config is None else config
    names = PeftNames.of(model)
    parts = {}
    for name in targeted(model, config, names):
        module = model.get_submodule(name)
        base = module.base if isinstance(module, LoRA) else module
        assert isinstance(base, Dense | Packed)
        known = (name, *filter(None, [names.theirs(name)]))
        parts[name] = LoRAWeights.fresh(
            base, config.rank_of(*known), config.scale_of(*known),
            dora=config.use_dora, dropout=config.dropout, generator=generator,
        )  # fmt: skip
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapter = Adapter(config, parts)
    rows_of(model, make=True).default = attach(model, adapter)
    return adapter


def targeted(model: Decoder, config: LoRAConfig, names: PeftNames) -> list[str]:
    """Our names of the linear maps that a config means. Raises UsageError for a target that means none."""
    there = linear_names(model)
    chosen: set[str] = set()
    for target in config.targets:
        if target == ALL_LINEAR:
            found = [name for name in there if name.startswith("blocks.") and not name.endswith("value_gate")]
        else:
            found = [n for n in there if named(target, n) or named(target, names.theirs(n) or n)]
        if not found:
            last = sorted({(names.theirs(name) or name).rpartition(".")[2] for name in there})
            raise UsageError(
                "no linear map has this name", field="targets", value=target,
                remedy=f'one of {", ".join(last)}, or "{ALL_LINEAR}"',
            )  # fmt: skip
        chosen.update(found)
    return [name for name in there if name in chosen]


def linear_names(model: nn.Module) -> list[str]:
    """Our names of all linear maps, adapted ones included."""
    inner = {f"{name}.base" for name in adapted_modules(model)}
    return [
        name for name, m in model.named_modules() if isinstance(m, Dense | Packed | LoRA) and name not in inner
    ]  # fmt: skip


def rows_of(model: nn.Module, *, make: bool = False) -> AdapterRows:
    """The choice that the model's LoRA modules share. Raises UsageError when there is none and `make` is not set: a
    model keeps one from its first adapter on."""
    found = next((m.rows for m in model.modules() if isinstance(m, LoRA)), None) or getattr(model, "_rows", None)
    if found is None:
        if not make:
            raise UsageError("the model has no adapter", field="model", remedy="add_lora(model, LoRAConfig())")
        found = AdapterRows()
    object.__setattr__(model, "_rows", found)  # no submodule, no buffer
    return found


def attach(model: Decoder, adapter: Adapter, number: int | None = None) -> int:
    """Puts an adapter beside those that are there and returns its number; no row goes through it yet.

    Raises DachengError when a part does not fit; the model is then as it was."""
    rows = rows_of(model, make=True)
    number = max(rows.known, default=BASE) + 1 if number is None else number
    found: dict[str, Dense | Packed | LoRA] = {}
    for name, part in adapter.parts.items():
        found[name] = _fitting(model, name, part)
    for name, part in adapter.parts.items():
        module = found[name]
        if not isinstance(module, LoRA):
            wrapped = LoRA(module, rows)
            wrapped.train(module.training)
            put(model, name, wrapped)
            module = wrapped
        part.train(module.training)
        module.adapters[str(number)] = part
    rows.known.add(number)
    return number


def _fitting(model: Decoder, name: str, part: LoRAWeights) -> Dense | Packed | LoRA:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, Dense | Packed | LoRA):
        raise DachengError(
            "the model has no such linear map", field=name, remedy="take the adapter and the model it was made for"
        )
    shape, expected = (part.b.shape[0], part.a.shape[1]), (module.out_features, module.in_features)
    if shape != expected:
        raise DachengError(
            f"the adapter is for a map of {list(shape)}, the model's is {list(expected)}", field=name,
            value=list(shape), remedy="take the adapter and the model it was made for",
        )  # fmt: skip
    return module


def detach(model: Decoder, number: int) -> None:
    """Takes an adapter off; a map without one is the plain module again."""
    rows = rows_of(model)
    rows.check(number)
    for name, module in adapted_modules(model).items():
        if str(number) in module.adapters:
            del module.adapters[str(number)]
        if not module.adapters:
            put(model, name, module.base)
    rows.known.discard(number)
    if rows.default == number:
        rows.default = BASE


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def adapter_of(model: Decoder, config: LoRAConfig, number: int) -> Adapter:
    """An adapter that is on the model, as it is now (its weights are shared, not copied)."""
    parts = {name: part for name, m in adapted_modules(model).items() if (part := m.part(number)) is not None}
    return Adapter(config, parts)


@contextmanager
def disabled(model: Decoder) -> Iterator[None]:
    """The base, to the bit, for the forwards of this thread: a reference policy without a second model."""
    with rows_of(model).use(BASE):
        yield
