"""Which maps may have few bits: what the loss is expected to gain when one is rounded, and a choice under a budget of
bytes.

To second order around a trained model, rounding changes the loss by ½ Σ F_ij Δ_ij² with F the squared gradients of the
text, the diagonal of the empirical Fisher information (LeCun et al. 1990; SqueezeLLM, Kim et al. 2023, eq. 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dacheng.compress.calibrate import CalibrationBatch
from dacheng.compress.quantize.config import QuantizeConfig, chosen_maps
from dacheng.errors import UsageError
from dacheng.nn.contexts import DenseCausal
from dacheng.ops.integers import IntTensor, QSpec

Table = dict[str, dict[QSpec, tuple[int, float]]]
"""Of each map and format: bytes, and what the loss is expected to gain (nats a token)."""
_CHUNK = 256  # tokens whose logits are held at once


def sensitivities(model: nn.Module, config: QuantizeConfig, options: Sequence[QSpec], batches: Iterable[Any]) -> Table:
    """Every map that `config` would quantise in every format of `options`. One backward over the batches; the model is
    as it was. Raises UsageError without text, and for a group that does not divide a map."""
    maps, _ = chosen_maps(model, config)
    fisher = _fisher(model, maps, list(batches))
    table: Table = {}
    with torch.no_grad():
        for name, module in maps.items():
            weight = module.weight
            assert isinstance(weight, Tensor)
            table[name] = {}
            for spec in options:
                rounded = IntTensor.from_float(weight, spec)
                delta = rounded.dequantize() - weight
                table[name][spec] = (rounded.nbytes, 0.5 * float((fisher[name] * delta.square()).sum()))
    return table


def allocate(table: Mapping[str, Mapping[QSpec, tuple[int, float]]], budget: int) -> dict[str, QSpec]:
    """A format for each map, `budget` bytes in all: from the smallest ones up, always the step that saves most loss for
    a byte. Raises UsageError naming the least that there is."""
    steps: dict[str, list[tuple[QSpec, int, float]]] = {}
    for name, choices in table.items():
        ordered = sorted(((spec, size, loss) for spec, (size, loss) in choices.items()), key=lambda item: item[1])
        kept = [ordered[0]]
        for item in ordered[1:]:
            if item[2] < kept[-1][2]:  # larger and no better is no choice
                kept.append(item)
        steps[name] = kept
    place = dict.fromkeys(steps, 0)
    used = sum(options[0][1] for options in steps.values())
    if used > budget:
        raise UsageError("the budget is below the smallest formats", field="budget", value=budget,
                         remedy=f"at least {used} bytes")  # fmt: skip
    while True:
        best: tuple[float, str, int] | None = None
        for name, options in steps.items():
            here = options[place[name]]
            for further in range(place[name] + 1, len(options)):
                there = options[further]
                if used + there[1] - here[1] <= budget:
                    saved = (here[2] - there[2]) / max(1, there[1] - here[1])
                    if best is None or saved > best[0]:
                        best = (saved, name, further)
        if best is None:
            return {name: options[place[name]][0] for name, options in steps.items()}
        _, name, further = best
        used += steps[name][further][1] - steps[name][place[name]][1]
        place[name] = further


def _fisher(model: Any, maps: Mapping[str, nn.Module], batches: list[Any]) -> dict[str, Tensor]:
    """Mean over tokens of the squared gradient of a row's summed loss, divided by the row's tokens: (out, in) a map."""
    if not batches:
        raise UsageError("sensitivity is measured on some text", field="calibration", value=None, remedy="give a text")
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    wanted = {f"{name}.weight" for name in maps}
    found = {name: torch.zeros_like(module.weight) for name, module in maps.items()}  # type: ignore[arg-type]
    tokens = 0
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in wanted)
        for value in batches:
            for row in CalibrationBatch.of(value).tokens:
                model.zero_grad(set_to_none=True)
                positions = torch.arange(len(row) - 1)[None]
                hidden = model(row[None, :-1], positions, DenseCausal())[0]
                loss = sum(
                    nn.functional.cross_entropy(
                        model.head(hidden[i : i + _CHUNK]).float(), row[1 + i : 1 + i + _CHUNK], reduction="sum"
                    )
                    for i in range(0, len(hidden), _CHUNK)
                )
                assert isinstance(loss, Tensor)
                loss.backward()
                tokens += len(hidden)
                for name, module in maps.items():
                    gradient = module.weight.grad
                    assert isinstance(gradient, Tensor)
                    found[name] += gradient.square()
    finally:
        model.zero_grad(set_to_none=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(asked[name])
    return {name: total / tokens for name, total in found.items()}
