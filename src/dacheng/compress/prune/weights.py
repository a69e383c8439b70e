"""Zeros in the linear maps of a model's blocks: by magnitude, Wanda or SparseGPT, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dacheng.compress.calibrate import InputStats
from dacheng.compress.hessian import DAMP
from dacheng.compress.prune.magnitude import Scope, magnitude
from dacheng.compress.prune.shrink import check_plain
from dacheng.compress.prune.sparsegpt import BLOCK, sparsegpt
from dacheng.compress.prune.sparsity import Sparsity, share_of_zeros
from dacheng.compress.prune.wanda import apply_mask, wanda
from dacheng.compress.walk import Layer, LayerWalk
from dacheng.errors import UsageError
from dacheng.formats.json_files import read_json, write_json
from dacheng.models.decoder import Decoder
from dacheng.nn.linear import Dense
from dacheng.nn.moe import MoE

Method = Literal["magnitude", "wanda", "sparsegpt"]
METHODS = ("magnitude", "wanda", "sparsegpt")
NOTES = "notes.json"
_ALREADY = 0.02  # share of zeros from which a model was pruned before


@dataclass(slots=True)
class PruneReport:
    """zeros: share of each map; sparsity: of all of them together. tokens: that statistics are of. notes: what did not
    go as planned."""

    method: str
    asked: str
    sparsity: float = 0.0
    tokens: int = 0
    zeros: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def prune_weights(
    model: Decoder,
    batches: Iterable[Any] = (),
    method: Method = "wanda",
    sparsity: Sparsity | float | str = 0.5,
    *,
    scope: Scope = "layer",
    block: int = BLOCK,
    damp: float = DAMP,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PruneReport:
    """Prunes every linear map of the blocks in place; embeddings and head stay, as in the papers.

    batches: as `dacheng.compress.calibrate` takes them; magnitude needs none. Each block is pruned with the inputs that
    the pruned blocks before it give. scope: of magnitude. folder: where a stopped call of Wanda or SparseGPT leaves
    what it has done; the same call on the same model goes on from there. progress(blocks done, blocks).

    Raises UsageError for an unknown method, a sparsity that does not divide a row, packed weights or no text;
    DachengError for activations that are not finite.
    """
    if method not in METHODS:
        raise UsageError("no such method", field="method", value=method, remedy="one of " + ", ".join(METHODS))
    asked = Sparsity.parse(sparsity)
    check_plain(model)
    report = PruneReport(method, str(asked), notes=_first_notes(model))
    if method == "magnitude":
        for module in linear_maps(model).values():
            module.weight.copy_(apply_mask(module.weight, magnitude(module.weight, asked, scope)))
    else:
        walk = LayerWalk(model, batches, folder=folder, purpose=f"prune {method} {asked} {block} {damp}")
        told = _taken_up(walk, report)
        for layer in walk:
            if layer.module is not None:
                before = len(report.notes)
                _prune_layer(layer, method, asked, block, damp, report)
                if folder is not None:
                    told[str(layer.index)] = {"tokens": report.tokens, "notes": report.notes[before:]}
                    write_json(folder / NOTES, told)
                    layer.keep({name: module.weight for name, module in layer.modules.items()})  # type: ignore[misc]
            if progress is not None:
                progress(min(layer.index + 1, len(model.blocks)), len(model.blocks))
    maps = linear_maps(model)
    report.zeros = {name: share_of_zeros(module.weight) for name, module in maps.items()}
    total = sum(module.weight.numel() for module in maps.values())
    report.sparsity = sum(report.zeros[name] * m.weight.numel() for name, m in maps.items()) / max(1, total)
    return report


def _taken_up(walk: LayerWalk, report: PruneReport) -> dict[str, Any]:
    """Puts what a stopped call has pruned into the model, and what it said of each block into the report. Returns the
    latter by block."""
    for kept in walk.kept():
        for name, weight in kept.items():
            walk.model.get_submodule(name).weight.copy_(weight)
    if walk.folder is None or not walk.first or not (walk.folder / NOTES).is_file():
        return {}
    told = {index: one for index, one in read_json(walk.folder / NOTES).items() if int(index) < walk.first}
    for one in told.values():
        report.tokens = max(report.tokens, one["tokens"])
        report.notes += one["notes"]
    return told


def _first_notes(model: Decoder) -> list[str]:
    maps, notes = linear_maps(model), []
    before = sum(share_of_zeros(module.weight) for module in maps.values()) / max(1, len(maps))
    if before > _ALREADY:
        notes.append(f"the model had {before:.0%} zeros already: they are part of what is counted")
    if any(isinstance(module, MoE) for module in model.modules()):
        notes.append("experts are left as they are: only attention and dense networks were pruned")
    return notes


def _prune_layer(
    layer: Layer, method: Method, sparsity: Sparsity, block: int, damp: float, report: PruneReport
) -> None:
    """All maps of a block from one pass over its inputs, as the reference does."""
    stats = layer.collect({"hessian"} if method == "sparsegpt" else {"sqnorm"})
    for name, module in layer.modules.items():
        weight: Tensor = module.weight  # type: ignore[assignment]
        found = stats.get(name)
        if found is None or found.tokens == 0:
            report.notes.append(f"{name}: no token went through it, pruned by magnitude")
            weight.copy_(apply_mask(weight, magnitude(weight, sparsity, "row")))
            continue
        report.tokens = max(report.tokens, found.tokens)
        weight.copy_(_pruned(name, weight, found, method, sparsity, block, damp, report))


def _pruned(
    name: str, weight: Tensor, stats: InputStats, method: Method, sparsity: Sparsity, block: int, damp: float,
    report: PruneReport,
) -> Tensor:  # fmt: skip
    if method == "wanda":
        assert stats.sqnorm is not None
        return apply_mask(weight, wanda(weight, stats.sqnorm, sparsity))
    assert stats.hessian is not None
    if stats.tokens < weight.shape[1]:
        report.notes.append(f"{name}: {stats.tokens} tokens for {weight.shape[1]} inputs, the rest is damping")
    solved = sparsegpt(weight, stats.hessian, sparsity, block=block, damp=damp)
    report.notes += [f"{name}: {note}" for note in solved.notes]
    return solved.weight


def linear_maps(model: nn.Module) -> dict[str, Dense]:
    """The linear maps of the blocks."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Dense) and n.startswith("blocks.")}


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """True where a weight is not zero, of every map that has zeros: to keep them through further training."""
    found = {name: module.weight.detach() != 0 for name, module in linear_maps(model).items()}
    return {name: mask for name, mask in found.items() if not bool(mask.all())}


def put_masks(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Sets to zero, in place, what the masks say."""
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_submodule(name).weight.mul_(mask)  # type: ignore[operator,union-attr]
