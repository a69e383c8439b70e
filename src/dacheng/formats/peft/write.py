"""An adapter as a PEFT directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats.atomic import replacing_directory
from dacheng.formats.json_files import write_json
from dacheng.formats.peft.config import CONFIG, WEIGHTS
from dacheng.formats.peft.names import PREFIX, PeftNames, has_module
from dacheng.formats.safetensors_io import write_tensors
from dacheng.models.decoder import Decoder
from dacheng.nn.lora import LoRAWeights
from dacheng.nn.lora_config import Adapter


def write_adapter(path: Path | str, adapter: Adapter, model: Decoder, *, base: str | None = None) -> Path:
    """Writes `adapter` as PEFT loads it onto the same model in transformers; float32. Takes the place of `path` whole.

    base: what to name as the model it belongs to. Parts of a projection that transformers has fused become one adapter
    of it: with the rank of one where all share their A, else with the ranks of all. Raises DachengError for a map that
    transformers has no module for, and for DoRA on only some parts of a fused one.
    """
    names, tensors = PeftNames.of(model), dict[str, Tensor]()
    ranks: dict[str, int] = {}
    scales: dict[str, float] = {}
    for theirs, ours in _by_theirs(adapter, names).items():
        one = _joined(theirs, ours, adapter, names, model)
        key = f"{PREFIX}{theirs}."
        tensors[key + "lora_A.weight"], tensors[key + "lora_B.weight"] = one.a.detach(), one.b.detach()
        if one.magnitude is not None:
            tensors[key + "lora_magnitude_vector"] = one.magnitude.detach()
        ranks[theirs], scales[theirs] = one.rank, one.scale
    config = _config(adapter, model, names, ranks, scales, adapter.base if base is None else base)
    path = Path(path)
    with replacing_directory(path) as staging:
        write_tensors(staging / WEIGHTS, tensors, {"format": "pt"}, dtype=torch.float32)
        write_json(staging / CONFIG, config)
    return path


def _by_theirs(adapter: Adapter, names: PeftNames) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in adapter.parts:
        theirs = names.theirs(name)
        if theirs is None:
            raise DachengError(
                "transformers has no module for this map", field=name, value=names.family.model_type,
                remedy="leave it out of the targets, or merge the adapter and export the model",
            )  # fmt: skip
        found.setdefault(theirs, []).append(name)
    return found


def _joined(theirs: str, ours: list[str], adapter: Adapter, names: PeftNames, model: Decoder) -> LoRAWeights:
    """The adapter of one module of theirs."""
    whole = names.ours(theirs)
    parts = {name: adapter.parts[name] for name in whole if name in ours}
    first = next(iter(parts.values()))
    if len(whole) == 1:
        return first
    if first.magnitude is not None and len(parts) < len(whole):
        raise DachengError(
            "DoRA on only some parts of a fused projection cannot be written", field=theirs, value=ours,
            remedy=f"adapt all of {', '.join(whole)}",
        )  # fmt: skip
    rows = dict(zip(whole, names.rows(model, theirs)))
    outs = sum(len(r) for r in rows.values())
    shared = all(p.scale == first.scale and torch.equal(p.a, first.a) for p in parts.values())
    a = first.a.detach() if shared else torch.cat([part.a.detach() for part in parts.values()])
    b, column = torch.zeros(outs, len(a)), 0
    magnitude = None if first.magnitude is None else torch.zeros(outs)
    for name, part in parts.items():
        stop = column + part.rank
        b[rows[name], column:stop] = part.b.detach().float().cpu() * (part.scale / first.scale)
        if magnitude is not None and part.magnitude is not None:
            magnitude[rows[name]] = part.magnitude.detach().float().cpu()
        column = column if shared else stop
    return LoRAWeights(a, b, first.scale, magnitude=magnitude)


def _config(
    adapter: Adapter, model: Decoder, names: PeftNames, ranks: dict[str, int], scales: dict[str, float], base: str
) -> dict[str, Any]:
    c = adapter.config
    default = c.scale_of("")
    root = {name: (rank**0.5 if c.use_rslora else rank) for name, rank in ranks.items()}
    alphas = {name: round(scales[name] * root[name], 9) for name in ranks}
    rank_pattern = {name: rank for name, rank in ranks.items() if rank != c.rank}
    alpha_pattern = {
        name: _whole(alphas[name]) for name in ranks if name in rank_pattern or abs(scales[name] - default) > 1e-12
    }
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": c.rank,
        "lora_alpha": _whole(c.alpha), "lora_dropout": c.dropout, "use_rslora": c.use_rslora, "use_dora": c.use_dora,
        "target_modules": _targets(list(ranks), model, names), "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern, "bias": "none", "fan_in_fan_out": names.transposed, "inference_mode": True,
        "init_lora_weights": True, "modules_to_save": None,
    }  # fmt: skip


def _whole(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _targets(adapted: list[str], model: Decoder, names: PeftNames) -> list[str]:
    """Last parts of names (q_proj) where all modules so called are adapted, else whole names."""
    chosen: set[str] = set()
    for last in {name.rpartition(".")[2] for name in adapted}:
        mine = [name for name in adapted if name.rpartition(".")[2] == last]
        there = {t for i in range(model.traits.layers) for t in _counterparts(mine[0], i) if _there(t, model, names)}
        chosen.update([last] if there <= set(mine) else mine)
    return sorted(chosen)


def _counterparts(name: str, layer: int) -> list[str]:
    """The same module in another layer."""
    pieces = name.split(".")
    return [".".join(str(layer) if piece.isdigit() else piece for piece in pieces)]


def _there(theirs: str, model: Decoder, names: PeftNames) -> bool:
    ours = names.ours(theirs)
    return bool(ours) and all(has_module(model, name) for name in ours)
