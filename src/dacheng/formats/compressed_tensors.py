"""The layout of compressed-tensors (neuralmagic; vLLM and transformers read it): integers of 4 or 8 bits.

Format "pack-quantized" (its PackedQuantizationCompressor): weight_packed int32 (out, in / values), several codes to a
word, the first in the lowest bits, each plus 2^(bits-1); weight_scale (out, groups); weight_zero_point packed along its
rows where there is one; weight_shape int64 (2,). The embedding and other matrices stay floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dacheng.errors import DachengError, DamagedFile
from dacheng.ops.integers import SCALE_DTYPES, IntTensor, QSpec

METHOD, FORMAT = "compressed-tensors", "pack-quantized"
_BITS = (4, 8)
_PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
_AGAIN = "copy config.json and the weights again, from one source"


def compressed(tensors: Mapping[str, Tensor], stored: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors to write and the quantization_config. Raises DachengError where the layout has no word for it: several
    formats in one model, other bits, a scale for a whole tensor, a quantised embedding."""
    specs = {value.spec if isinstance(value, IntTensor) else type(value).__name__ for value in stored.values()}
    spec = next(iter(specs), None)
    if len(specs) != 1 or not isinstance(spec, QSpec) or spec.bits not in _BITS or spec.group == "tensor":
        raise DachengError(
            "compressed-tensors holds integers of one kind, 4 or 8 bits, by channel or group", field="layout",
            value=", ".join(sorted(map(str, specs))), remedy="save it in our own layout, or as GGUF",
        )  # fmt: skip
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in stored:
            found[name] = tensor
            continue
        base, value = name.removesuffix(".weight"), stored[name]
        found[f"{base}.weight_packed"] = _words(value.codes, spec.bits)
        found[f"{base}.weight_scale"] = value.scale
        found[f"{base}.weight_shape"] = torch.tensor(list(value.shape), dtype=torch.int64)
        if value.zero is not None:
            found[f"{base}.weight_zero_point"] = _words(value.zero.t().contiguous(), spec.bits).t().contiguous()
    return found, _config(spec, sorted(_unquantised(tensors, stored)))


def _unquantised(tensors: Mapping[str, Tensor], stored: Mapping[str, Any]) -> set[str]:
    """Modules with a matrix that stays as it is; an embedding is no Linear, so nobody looks for it there."""
    matrices = {name for name, value in tensors.items() if value.ndim == 2 and name.endswith(".weight")}
    left = {name.removesuffix(".weight") for name in matrices - stored.keys()}
    return {name for name in left if "embed" not in name} | {"lm_head"}


def _config(spec: QSpec, ignored: list[str]) -> dict[str, Any]:
    grouped = isinstance(spec.group, int)
    weights = {
        "num_bits": spec.bits, "type": "int", "symmetric": spec.symmetric,
        "strategy": "group" if grouped else "channel",
        "group_size": spec.group if grouped else None, "dynamic": False, "observer": "minmax", "actorder": None,
        "block_structure": None, "observer_kwargs": {},
    }  # fmt: skip
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": METHOD, "format": FORMAT, "quantization_status": "compressed", "ignore": ignored,
        "config_groups": {"group_0": group}, "kv_cache_scheme": None, "global_compression_ratio": None,
    }  # fmt: skip


def decompressed(
    tensors: dict[str, Tensor], config: Mapping[str, Any], where: Path
) -> tuple[dict[str, IntTensor], dict[str, Tensor]]:
    """Matrices by name, and the tensors that are none. Raises DachengError for what is not read, DamagedFile for parts
    that contradict each other."""
    spec = _spec_of(config, where)
    found = {}
    for base in sorted(name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")):
        parts = {part: tensors.pop(f"{base}.{part}") for part in _PARTS if f"{base}.{part}" in tensors}
        tensors.pop(f"{base}.weight_g_idx", None)
        found[f"{base}.weight"] = _restored(base, parts, spec, where)
    return found, tensors


def _spec_of(config: Mapping[str, Any], where: Path) -> QSpec:
    groups = config.get("config_groups")
    group = next(iter(groups.values())) if isinstance(groups, dict) and len(groups) == 1 else None
    weights = group.get("weights") if isinstance(group, dict) else None
    if config.get("format") != FORMAT or not isinstance(weights, dict):
        raise _unread(where, "format", config.get("format"))
    wanted = (("type", "int"), ("dynamic", False))
    for field, value in wanted:
        if weights.get(field, value) != value:
            raise _unread(where, field, weights.get(field))
    if isinstance(group, dict) and group.get("input_activations"):
        raise _unread(where, "input_activations", group["input_activations"])
    if weights.get("num_bits") not in _BITS or weights.get("strategy") not in ("channel", "group"):
        raise _unread(where, "num_bits", weights.get("num_bits"))
    if weights.get("actorder") not in (None, False, "static", "weight"):
        raise _unread(where, "actorder", weights.get("actorder"))
    size = weights.get("group_size") if weights["strategy"] == "group" else "channel"
    return QSpec(weights["num_bits"], size or "channel", bool(weights.get("symmetric", True)))


def _restored(base: str, parts: dict[str, Tensor], spec: QSpec, where: Path) -> IntTensor:
    try:
        rows, width = (int(size) for size in parts["weight_shape"])
        scale = parts["weight_scale"]
        names = {dtype: name for name, dtype in SCALE_DTYPES.items()}
        spec = QSpec(spec.bits, spec.group, spec.symmetric, names[scale.dtype])
        groups = width // spec.columns(width)
        if tuple(scale.shape) != (rows, groups):
            raise ValueError(f"scales of {list(scale.shape)} for {[rows, groups]}")
        codes = _codes(parts["weight_packed"], spec.bits, width)
        zero = None
        if not spec.symmetric:
            zero = _codes(parts["weight_zero_point"].t().contiguous(), spec.bits, rows).t().contiguous()
        if codes.shape[0] != rows or (zero is not None and zero.shape[1] != groups):
            raise ValueError("the packed words are those of another shape")
    except (KeyError, ValueError, TypeError, RuntimeError, DachengError) as error:
        raise DamagedFile(f"{where}: {base} is damaged ({error})", field=base, value=sorted(parts),
                          remedy=_AGAIN) from None  # fmt: skip
    return IntTensor(spec, codes, scale, zero)


def _words(codes: Tensor, bits: int) -> Tensor:
    """codes (rows, width) uint8 -> int32 (rows, width / (32 / bits)), rows filled up with zeros."""
    values = 32 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % values)).to(torch.int64)
    grouped = padded.view(len(codes), -1, values)
    words = torch.zeros(grouped.shape[:2], dtype=torch.int64)
    for i in range(values):
        words |= grouped[:, :, i] << (bits * i)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _codes(words: Tensor, bits: int, width: int) -> Tensor:
    values = 32 // bits
    if words.dtype != torch.int32 or words.ndim != 2 or words.shape[1] != -(-width // values):
        raise ValueError(f"{width} codes take {-(-width // values)} words a row")
    shifted = torch.stack([(words >> (bits * i)) & (2**bits - 1) for i in range(values)], dim=2)
    return shifted.view(len(words), -1)[:, :width].to(torch.uint8).contiguous()


def _unread(where: Path, field: str, value: object) -> DachengError:
    return DachengError(
        f"{where}: compressed-tensors like that are not read", field=f"quantization_config.{field}", value=value,
        remedy="pack-quantized integers of 4 or 8 bits, by channel or group",
    )  # fmt: skip
