"""Rotary positions in GGUF's keys and tensors, and as `rope_parameters` of a config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats.gguf.file import GGUFFile
from dacheng.formats.gguf.keys import Keys, shortest

FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_LLAMA3_LENGTHS = tuple(2**n for n in range(4, 21))  # of the text before the extension; Llama's own is 8192
_YARN = {"yarn_attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
# What llama.cpp takes whatever the file says (measured with a build of October 2026).
_ALWAYS = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}


def rope_parameters(keys: Keys, file: GGUFFile, head_dim: int | None = None) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 writes them. `head_dim` where the keys do not say it.

    Raises DachengError on a scaling that cannot be expressed.
    """
    head_dim = head_dim or head_width(keys)
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base", 10000.0)}
    rotated = keys.integer("rope.dimension_count", head_dim)
    if rotated % 2 or rotated > head_dim:
        raise keys.error(f"must be even and at most the width of a head, {head_dim}", "rope.dimension_count", rotated)
    if rotated != head_dim:
        found["partial_rotary_factor"] = rotated / head_dim
    found |= _scaling(keys, file, rotated)
    return found


def head_width(keys: Keys) -> int:
    """Values in a key: what the file says, or the width divided among the heads."""
    heads, width = keys.integer("attention.head_count"), keys.integer("embedding_length")
    if heads > width:
        raise keys.error(f"is more than the width, {width}", "attention.head_count", heads)
    return keys.integer("attention.key_length", width // heads)


def _scaling(keys: Keys, file: GGUFFile, rotated: int) -> dict[str, Any]:
    kind = keys.get("rope.scaling.type", "linear")  # llama.cpp's default, with a factor of 1
    old = keys.number("rope.scale_linear", 0.0, or_zero=True)
    factor = keys.number("rope.scaling.factor", old, or_zero=True) or 1.0
    length = keys.integer("rope.scaling.original_context_length", None)
    attention = keys.number("rope.scaling.attn_factor", None)
    keys.understood("rope.scaling.finetuned")  # how the scaling came about
    keys.only("rope.scaling.yarn_ext_factor", (1.0, -1.0), "asks for a part of the extrapolation")  # -1: not set
    yarn = {theirs: keys.number(f"rope.scaling.{ours}", None) for ours, theirs in _YARN.items()}
    if FREQS in file.tensors:
        if kind not in ("none", "linear") or factor != 1.0:
            raise keys.error(f"scales the positions, and so does {FREQS}", "rope.scaling.type", kind)
        return _llama3(file, rotated, keys)
    if LONG in file.tensors or SHORT in file.tensors:
        return _longrope(keys, file, rotated, length, attention)
    if attention not in (None, 1.0):
        raise keys.error(
            "scales attention, which is read with long and short factors only", "rope.scaling.attn_factor", attention
        )
    if kind == "yarn" and factor != 1.0:
        said = {name: value for name, value in yarn.items() if value is not None}
        return {"rope_type": "yarn", "factor": factor, **_lengths(length), **said}
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise keys.error("asks for scaled positions of an unknown kind", "rope.scaling.type", kind)
    if kind == "none" or factor == 1.0:
        return {}
    if kind == "longrope":
        raise keys.error(f"needs {LONG} and {SHORT}", "rope.scaling.type", kind)
    return {"rope_type": "linear", "factor": factor}


def _lengths(length: int | None) -> dict[str, Any]:
    return {} if length is None else {"original_max_position_embeddings": length}


def _factors(file: GGUFFile, name: str, rotated: int) -> Tensor:
    factors = file.tensor(name).float()
    if factors.shape != (rotated // 2,) or not bool((factors.isfinite() & (factors > 0)).all()):
        raise DachengError(
            f"{file.path}: {name} must hold {rotated // 2} positive factors", field=name, value=list(factors.shape),
            remedy="convert the model again",
        )  # fmt: skip
    return factors


def _longrope(keys: Keys, file: GGUFFile, rotated: int, length: int | None, attention: float | None) -> dict[str, Any]:
    if length is None:
        raise keys.error("is needed with long and short factors", "rope.scaling.original_context_length", None)
    found: dict[str, Any] = {"rope_type": "longrope", "original_max_position_embeddings": length}
    for name, key in ((LONG, "long_factor"), (SHORT, "short_factor")):
        found[key] = [shortest(factor) for factor in _factors(file, name, rotated).tolist()]
    longer = keys.integer("context_length") / length
    usual = math.sqrt(1 + math.log(longer) / math.log(length)) if longer > 1 and length > 1 else 1.0
    if attention is not None and abs(attention - usual) > 1e-5 * usual:
        found["attention_factor"] = attention
    return found


# --- Llama 3 ----------------------------------------------------------------------------------------------------------
def llama3_factors(parameters: Mapping[str, Any], rotated: int) -> Tensor:
    """What each frequency is divided by: (rotated / 2,) float32. Llama 3.1 (Meta 2024), as llama.cpp's converter writes
    it: 1 for short waves, `factor` for long ones, and between the two a blend."""
    base, factor = float(parameters["rope_theta"]), float(parameters["factor"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    length = int(parameters["original_max_position_embeddings"])
    frequencies = 1.0 / (base ** (torch.arange(0, rotated, 2, dtype=torch.float32) / rotated))
    waves = 2 * math.pi / frequencies
    smooth = (length / waves - low) / (high - low)
    blend = 1 / ((1 - smooth) / factor + smooth)
    factors = torch.where(waves < length / high, torch.ones_like(waves), blend)
    return torch.where(waves > length / low, torch.full_like(waves, factor), factors)


def _llama3(file: GGUFFile, rotated: int, keys: Keys) -> dict[str, Any]:
    """The parameters that give the factors in the file. Llama's own are tried, with every usual length."""
    factors = _factors(file, FREQS, rotated)
    largest = shortest(float(factors.max()))
    if bool((factors == 1.0).all()):
        return {}
    theta = keys.number("rope.freq_base", 10000.0)
    for length in sorted(_LLAMA3_LENGTHS, key=lambda length: length != 8192):
        found = {"rope_type": "llama3", "factor": largest, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                 "original_max_position_embeddings": length}  # fmt: skip
        if torch.allclose(llama3_factors(found | {"rope_theta": theta}, rotated), factors, rtol=1e-5, atol=0):
            return found
    raise DachengError(
        f"{file.path}: the factors of the frequencies are not those of Llama 3", field=FREQS,
        value=factors.tolist()[:8], remedy="use a model with another scaling of positions",
    )  # fmt: skip


# --- out --------------------------------------------------------------------------------------------------------------
def rope_keys(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of one set of `rope_parameters`. Raises DachengError on a kind that is not written."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    keys: dict[str, Any] = {"rope.freq_base": float(parameters.get("rope_theta", 10000.0))}
    known = {"rope_type", "type", "rope_theta"}
    if kind in ("linear", "yarn"):
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": float(parameters["factor"])}
        known |= {"factor"}
    if kind == "yarn":
        if parameters.get("original_max_position_embeddings") is not None:
            keys["rope.scaling.original_context_length"] = int(parameters["original_max_position_embeddings"])
        if any(parameters.get(name, usual) != usual for name, usual in _ALWAYS.items()):
            raise DachengError(
                f"llama.cpp computes YaRN with {_ALWAYS}", field="rope_parameters", value=dict(parameters),
                remedy="export to another format",
            )  # fmt: skip
        known |= {"original_max_position_embeddings", *_ALWAYS}
    if kind == "llama3":  # a tensor: llama3_factors
        known |= {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    extra = {k: v for k, v in parameters.items() if k not in known and v is not None}
    if kind not in ("default", "linear", "yarn", "llama3") or extra.pop("partial_rotary_factor", 1.0) != 1.0 or extra:
        raise DachengError(
            "these rotary positions are not written to GGUF", field="rope_parameters", value=dict(parameters),
            remedy="export to another format",
        )  # fmt: skip
    return keys
