"""A whole model quantised, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dacheng.compress.calibrate import InputStats, Stats
from dacheng.compress.quantize.awq import awq_scales, clip_ranges, output_error
from dacheng.compress.quantize.config import QuantizeConfig, chosen_maps
from dacheng.compress.quantize.folding import fold, sites_of
from dacheng.compress.quantize.gptq import gptq
from dacheng.compress.quantize.smoothquant import smooth_scales
from dacheng.compress.walk import Layer, LayerWalk
from dacheng.errors import UsageError
from dacheng.formats.packed import Stored
from dacheng.ops.fp8 import FP8Tensor
from dacheng.ops.integers import IntTensor
from dacheng.ops.nf4 import NF4Tensor

_WANT = {"gptq": ("hessian",), "awq": ("hessian", "absmean"), "smoothquant": ("hessian", "absmax")}
_UNCLIPPED = ("attention.q", "attention.k")  # the authors' code leaves them: their product is what counts, not each


@dataclass(slots=True)
class Quantized:
    """weights: by the model's names ("blocks.0.attention.q.weight"), what stands in their place; the model itself holds
    the same numbers as floats. errors: of each map, root mean square of the change of its outputs over that of its
    outputs on the calibration text. notes: what the user should know."""

    weights: dict[str, Stored] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights.values())


@torch.no_grad()
def quantize_model(
    model: nn.Module,
    config: QuantizeConfig,
    batches: Iterable[Any] = (),
    *,
    folder: Path | None = None,
    progress: Callable[[float, int], None] | None = None,
) -> Quantized:
    """Quantises the linear maps of a decoder's or encoder's blocks in place, and its embedding and head where the
    config says so.

    batches: calibration text (see `calibrate`), needed by gptq, awq and smoothquant. folder: hidden states and finished
    blocks are kept there, and a call that was stopped goes on. progress(blocks done, blocks), with fractions of a block
    in between. Raises UsageError for a config that does not fit the model and where the text is missing, and what
    `LayerWalk` and the solvers raise.
    """
    maps, notes = chosen_maps(model, config)
    found = Quantized(notes=notes)
    if config.calibrated:
        batches = list(batches)
        if not batches:
            raise UsageError(f"{config.method} needs some text to calibrate with", field="calibration", value=None,
                             remedy="give a text, or take rtn")  # fmt: skip
        walk = LayerWalk(model, batches, folder=folder, purpose=f"quantize {config}", head=False,
                         progress=lambda done: None if progress is None else progress(done, len(walk)))  # fmt: skip
        for index, kept in enumerate(walk.kept()):
            _restore(model, index, kept, found, config)
        for layer in walk:
            _quantize_block(layer, {name: maps[name] for name in layer.modules if name in maps}, config, found)
            if folder is not None:
                layer.keep(_kept(layer, found))
            if progress is not None:
                progress(layer.index + 1, len(walk))
    else:
        for number, (name, module) in enumerate(maps.items(), 1):
            _put(module, name, _rounded(module.weight, config, name), found)  # type: ignore[arg-type]
            if progress is not None:
                progress(number, len(maps))
    if config.embedding is not None:
        _quantize_outside(model, config, found)
    return found


def _quantize_block(layer: Layer, maps: dict[str, nn.Module], config: QuantizeConfig, found: Quantized) -> None:
    assert layer.module is not None
    stats = layer.collect(_WANT[config.method], maps)
    for name in [name for name in maps if name not in stats]:
        found.notes.append(f"{name}: no token of the calibration text reached it: rounded to nearest")
        module = maps.pop(name)
        assert isinstance(module.weight, Tensor)
        _put(module, name, IntTensor.from_float(module.weight, config.spec_of(name)), found)
    if config.method in ("awq", "smoothquant"):
        _scale_inputs(layer, stats, maps, config)
    for names in _sharing(stats, maps):
        one = stats[names[0]]
        assert one.hessian is not None
        weights: list[Tensor] = [maps[name].weight for name in names]  # type: ignore[misc]
        if not one.tokens:
            raise UsageError(f"no token of the calibration text reached {names[0]}", field="calibration",
                             value=names[0], remedy="give more text, or take rtn")  # fmt: skip
        for name, weight, stored in zip(names, weights, _solved(names, weights, one, config, found), strict=True):
            delta = stored.dequantize() - weight
            whole = output_error(weight.float(), one.hessian).clamp(min=1e-30)
            found.errors[name] = float((output_error(delta, one.hessian).clamp(min=0) / whole).sqrt())
            _put(maps[name], name, stored, found)


def _solved(
    names: Sequence[str], weights: Sequence[Tensor], stats: InputStats, config: QuantizeConfig, found: Quantized
) -> list[IntTensor]:
    """Of maps that read one input. GPTQ solves them as one matrix: its rows don't know of each other."""
    assert stats.hessian is not None
    specs = [config.spec_of(name) for name in names]
    if config.method == "gptq":
        solved, start = [], 0
        one = len(set(specs)) == 1
        groups = [range(len(names))] if one else [range(i, i + 1) for i in range(len(names))]
        for group in groups:
            result = gptq(torch.cat([weights[i] for i in group]), stats.hessian, specs[group[0]], block=config.block,
                          damp=config.damp, act_order=config.act_order)  # fmt: skip
            if result.note:
                found.notes.append(f"{', '.join(names[i] for i in group)}: {result.note}")
            start = 0
            for i in group:
                solved.append(result.weight.rows(start, start + len(weights[i])))
                start += len(weights[i])
        return solved
    if config.method == "awq" and config.clip:
        weights = [w if name.endswith(_UNCLIPPED) else clip_ranges(w, stats.hessian, spec)
                   for name, w, spec in zip(names, weights, specs)]  # fmt: skip
    return [IntTensor.from_float(weight, spec) for weight, spec in zip(weights, specs)]


def _scale_inputs(layer: Layer, stats: Stats, maps: dict[str, nn.Module], config: QuantizeConfig) -> None:
    """Chooses the scales of all inputs of the block from its weights as they are, then applies them, to the statistics
    too."""
    assert layer.module is not None
    prefix, chosen = f"blocks.{layer.index}.", []
    for site in sites_of(layer.module):
        names = [prefix + name for name in site.readers]
        if not all(name in maps for name in names) or (
            config.method == "smoothquant" and not (site.after_norm or config.inner)
        ):
            continue
        one, weights = stats[names[0]], [maps[name].weight for name in names]
        if config.method == "awq":
            assert one.hessian is not None and one.absmean is not None
            scales, _ = awq_scales(weights, one.hessian, one.absmean, config.spec_of(names[0]))  # type: ignore[arg-type]
        else:
            assert one.absmax is not None
            scales = smooth_scales(one.absmax, weights, config.alpha)  # type: ignore[arg-type]
        chosen.append((site, one, scales))
    for site, one, scales in chosen:
        fold(layer.module, site, scales)
        assert one.hessian is not None
        one.hessian = one.hessian / scales / scales[:, None]


def _sharing(stats: Stats, maps: dict[str, nn.Module]) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name in maps:
        groups.setdefault(id(stats[name]), []).append(name)
    return list(groups.values())


def _rounded(weight: Tensor, config: QuantizeConfig, name: str) -> Stored:
    if config.method == "nf4":
        return NF4Tensor.from_float(weight, config.double)
    if config.method == "fp8":
        return FP8Tensor.from_float(weight)
    return IntTensor.from_float(weight, config.spec_of(name))


def _put(module: nn.Module, name: str, stored: Stored, found: Quantized) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight.copy_(stored.dequantize(weight.dtype))
    found.weights[f"{name}.weight"] = stored


def _quantize_outside(model: Any, config: QuantizeConfig, found: Quantized) -> None:
    assert config.embedding is not None
    for name in ("embed", "lm_head"):
        module = getattr(model, name, None)
        if module is not None:
            _put(module, name, IntTensor.from_float(module.weight, config.embedding), found)


# --- a walk that was stopped ------------------------------------------------------------------------------------------
def _kept(layer: Layer, found: Quantized) -> dict[str, Tensor]:
    """Codes of the block's maps, and its other parameters, which folding has changed."""
    assert layer.module is not None
    prefix = f"blocks.{layer.index}."
    tensors: dict[str, Tensor] = {}
    for name, parameter in layer.module.named_parameters():
        stored = found.weights.get(prefix + name)
        if stored is None:
            tensors[f"{prefix}{name}/plain"] = parameter
        else:
            assert isinstance(stored, IntTensor)
            tensors |= {f"{prefix}{name}/codes": stored.codes, f"{prefix}{name}/scale": stored.scale}
            if stored.zero is not None:
                tensors[f"{prefix}{name}/zero"] = stored.zero
            error = found.errors.get((prefix + name).removesuffix(".weight"))
            tensors[f"{prefix}{name}/error"] = torch.tensor(-1.0 if error is None else error)
    return tensors


def _restore(model: nn.Module, index: int, kept: dict[str, Tensor], found: Quantized, config: QuantizeConfig) -> None:
    parameters = dict(model.named_parameters())
    for key, tensor in kept.items():
        name, _, part = key.rpartition("/")
        if part == "plain":
            parameters[name].copy_(tensor)
        elif part == "codes":
            module = name.removesuffix(".weight")
            stored = IntTensor(config.spec_of(module), tensor, kept[f"{name}/scale"], kept.get(f"{name}/zero"))
            parameters[name].copy_(stored.dequantize())
            found.weights[name] = stored
            found.errors[module] = float(kept[f"{name}/error"])
