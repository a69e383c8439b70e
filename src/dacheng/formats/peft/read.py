"""An adapter from a PEFT directory, for one model."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats.json_files import read_json
from dacheng.formats.peft.config import CONFIG, WEIGHTS, read_config
from dacheng.formats.peft.names import KEY, PeftNames, has_module, out_features
from dacheng.formats.safetensors_io import read_tensors
from dacheng.models.decoder import Decoder
from dacheng.nn.lora import MAX_RANK, LoRA, LoRAWeights
from dacheng.nn.lora_config import Adapter, LoRAConfig

_FITTING = "take the adapter and the model it was made for"


def read_adapter(path: Path | str, model: Decoder) -> Adapter:
    """The adapter in a directory, float32 on the model's device. A projection that transformers has fused (qkv_proj)
    becomes an adapter for each of its parts, with the same numbers.

    Nothing of the file is trusted: raises DamagedFile and DachengError naming the field or the tensor.
    """
    path = Path(path)
    if not (path / CONFIG).is_file():
        raise DachengError(f"{path} holds no adapter", field="adapter", value=str(path),
                           remedy=f"name a directory with {CONFIG} and {WEIGHTS}")  # fmt: skip
    if not (path / WEIGHTS).is_file():
        raise DachengError(f"{path} has no {WEIGHTS}", field="adapter", value=str(path),
                           remedy="a pickled adapter_model.bin is not read: save it as safetensors")  # fmt: skip
    raw = read_json(path / CONFIG)
    config, names = read_config(raw, path / CONFIG), PeftNames.of(model)
    device = next(chain(model.parameters(), model.buffers())).device  # the first: others may be changing beside us
    parts: dict[str, LoRAWeights] = {}
    for module, tensors in _by_module(read_tensors(path / WEIGHTS), path).items():
        parts |= _parts(module, tensors, model, config, names, path / WEIGHTS, device)
    if not parts:
        raise DachengError(f"{path}: the adapter is empty", field="file", value=WEIGHTS, remedy="save it again")
    base = raw.get("base_model_name_or_path")
    return Adapter(config, parts, base if isinstance(base, str) else "")


def _by_module(tensors: dict[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is None:
            what = "embeddings are not adapted" if "lora_embedding" in key else "this is no part of a LoRA adapter"
            raise DachengError(f"{path / WEIGHTS}: {what}", field=key, value=list(tensor.shape),
                               remedy="lora_A, lora_B and lora_magnitude_vector of linear maps are read")  # fmt: skip
        found.setdefault(match[1], {})[match[2]] = tensor
    return dict(sorted(found.items()))


def _parts(
    module: str, tensors: dict[str, Tensor], model: Decoder, config: LoRAConfig, names: PeftNames, path: Path,
    device: torch.device,
) -> dict[str, LoRAWeights]:  # fmt: skip
    """The adapters of our maps that are one module of theirs."""
    ours = names.ours(module)
    if not ours or not all(has_module(model, name) for name in ours):
        raise DachengError(f"{path}: this model has no such linear map", field=module, value=names.family.model_type,
                           remedy=_FITTING)  # fmt: skip
    first = model.get_submodule(ours[0])
    base = first.base if isinstance(first, LoRA) else first
    if not hasattr(base, "in_features"):
        raise DachengError(f"{path}: only linear maps are adapted", field=module, value=type(base).__name__,
                           remedy="train an adapter of linear maps")  # fmt: skip
    outs, wide = sum(out_features(model, name) for name in ours), int(base.in_features)  # type: ignore[arg-type]
    a, b, magnitude = _checked(module, tensors, (outs, wide), config, path)
    scale = config.scale_of(module)
    made = {}
    for name, rows in zip(ours, names.rows(model, module)):
        own = None if magnitude is None else magnitude[rows].to(device)
        made[name] = LoRAWeights(
            a.clone().to(device), b[rows].to(device), scale, magnitude=own, dropout=config.dropout
        )  # fmt: skip
    return made


def _checked(
    module: str, tensors: dict[str, Tensor], shape: tuple[int, int], config: LoRAConfig, path: Path
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A, B and, with DoRA, the magnitude, in float32."""
    expected = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if config.use_dora else set())
    if tensors.keys() != expected:
        raise DachengError(f"{path}: not the tensors that the config asks for", field=module, value=sorted(tensors),
                           remedy=f"expected {sorted(expected)}")  # fmt: skip
    rank = config.rank_of(module)
    shapes = {"lora_A": (rank, shape[1]), "lora_B": (shape[0], rank), "lora_magnitude_vector": (shape[0],)}
    out = []
    for kind in sorted(expected):
        tensor = tensors[kind]
        if tuple(tensor.shape) != shapes[kind] or rank > MAX_RANK:
            raise DachengError(f"{path}: expected the shape {list(shapes[kind])}", field=f"{module}.{kind}",
                               value=list(tensor.shape), remedy=_FITTING)  # fmt: skip
        if not tensor.is_floating_point():
            raise DachengError(f"{path}: not a floating tensor", field=f"{module}.{kind}", value=str(tensor.dtype),
                               remedy="save the adapter in float32 or bfloat16")  # fmt: skip
        tensor = tensor.to(torch.float32, copy=True)
        if not bool(tensor.isfinite().all()):
            raise DachengError(f"{path}: a weight is not finite", field=f"{module}.{kind}", value="NaN or infinity",
                               remedy="the training diverged: take an earlier checkpoint")  # fmt: skip
        out.append(tensor)
    return out[0], out[1], out[2] if config.use_dora else None
