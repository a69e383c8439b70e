"""The adapters of a model as its fused step takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from dacheng.models.decoder import Decoder
from dacheng.nn.lora import AdapterRows, LoRA, LoRAWeights
from dacheng.ops.step_adapters import MAPS, MOST_RANK, RowAdapters, StepAdapter

_MLP = ("gate", "up", "down")


@dataclass(frozen=True, slots=True)
class _Known:
    """An adapter's weights, in which state they were, and what was made of them: it laid out, or why not."""

    parts: list[LoRAWeights]
    state: int
    found: StepAdapter | str

    def is_current(self) -> bool:
        return _state(self.parts) == self.state


class FusedAdapters:
    """By number; each is laid out when it is first asked for, and again when its weights were written to. A model may
    get its adapters later. trained: one in training is taken too, as it is when it is first asked for."""

    def __init__(self, model: Decoder, trained: bool = False) -> None:
        self._model, self._trained = model, trained
        self._known: dict[int, _Known] = {}

    def why_not(self, number: int) -> str:
        """Why rows can't go through this adapter; "" when they can."""
        there = _numbers(self._model)
        for gone in self._known.keys() - there:
            del self._known[gone]
        if number not in there:
            return "there is no such adapter"
        if number not in self._known or not self._known[number].is_current():
            parts = [part for _, part in _parts(self._model, number)]
            made = _why_not(self._model, number, self._trained) or _laid_out(self._model, number)
            self._known[number] = _Known(parts, _state(parts), made)
        found = self._known[number].found
        return found if isinstance(found, str) else ""

    def of(self, numbers: Sequence[int]) -> RowAdapters | None:
        """For rows that go through these, each of which `why_not` was asked about; None where none has any."""
        made = {number: known.found for number, known in self._known.items() if isinstance(known.found, StepAdapter)}
        return RowAdapters.of(numbers, made)


def _numbers(model: Decoder) -> set[int]:
    rows: AdapterRows | None = getattr(model, "_rows", None)  # see adapt.rows_of
    return set() if rows is None else rows.known


def _parts(model: Decoder, number: int) -> Iterator[tuple[str, LoRAWeights]]:
    for name, module in model.named_modules():
        part = module.part(number) if isinstance(module, LoRA) else None
        if part is not None:
            yield name, part


def _state(parts: Sequence[LoRAWeights]) -> int:
    """Changes when weights are written to, or begin to be trained: some optimizers write without leaving a trace."""
    if any(part.a.requires_grad for part in parts):
        return -1
    return sum(part.a._version + part.b._version for part in parts)


def _why_not(model: Decoder, number: int, trained: bool) -> str:
    for name, part in _parts(model, number):
        if not name.startswith("blocks.") or name.rpartition(".")[2] not in MAPS:
            return f"{name} is adapted"
        if part.magnitude is not None:
            return "it is a DoRA adapter"
        if part.a.requires_grad and not trained:
            return "it is in training, and the step has a copy"
        if part.rank > MOST_RANK:
            return f"its rank is over {MOST_RANK}"
    return ""


def _laid_out(model: Decoder, number: int) -> StepAdapter:
    def pair(layer: int, name: str) -> tuple[Tensor, Tensor] | None:
        module = model.get_submodule(f"blocks.{layer}.{'mlp' if name in _MLP else 'attention'}.{name}")
        part = module.part(number) if isinstance(module, LoRA) else None
        return None if part is None else (part.a, part.b * part.scale)

    return StepAdapter([[pair(layer, name) for name in MAPS] for layer in range(model.traits.layers)])
