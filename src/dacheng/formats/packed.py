"""Weights in fewer bits, in a model directory: which tensors of model.safetensors are parts of which matrix, as the
quantization_config of config.json says.

Two layouts. Ours holds every kind: NAME.codes (several to a byte), NAME.scale, NAME.zero …, and what each is under
`tensors`. That of compressed-tensors (vLLM, transformers) holds integers: see dacheng.formats.compressed_tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.huggingface.family import Layout
from dacheng.formats.json_files import read_json
from dacheng.ops.bits import pack_bits, row_bytes, unpack_bits
from dacheng.ops.fp8 import FP8_DTYPES, FP8Tensor
from dacheng.ops.integers import SCALE_DTYPES, IntTensor, QSpec
from dacheng.ops.low_rank import LowRankTensor
from dacheng.ops.nf4 import ABSMAX_BLOCK, BLOCK, NF4Tensor
from dacheng.ops.qtensor import QTensor
from dacheng.ops.sparse import SparseTensor

FIELD, METHOD, VERSION = "quantization_config", "dacheng", 1
LAYOUTS = ("dacheng", "compressed-tensors")
Stored = IntTensor | NF4Tensor | FP8Tensor | SparseTensor | LowRankTensor
_AGAIN = "copy config.json and the weights again, from one source"
_LARGEST = 2**33  # numbers of a matrix: thin factors of a few megabytes could ask for terabytes
_PARTS_OF = {
    "int": {"codes", "scale", "zero"}, "nf4": {"codes", "absmax", "levels", "offset"}, "fp8": {"codes", "scale"},
    "sparse": {"values", "bitmask"}, "low_rank": {"a", "b"},
}  # fmt: skip


def is_packed(path: Path | str) -> bool:
    """Whether a directory holds quantised weights, or the path is that of a GGUF file: what the engine keeps packed."""
    path = Path(path)
    if path.suffix == ".gguf":
        return True
    config = path / "config.json"
    return config.is_file() and FIELD in read_json(config)


def packed_tensors(
    tensors: Mapping[str, Tensor], stored: Mapping[str, Stored], layout: str, details: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors to write, those named in `stored` (by the family's names) replaced by their parts, and the
    quantization_config. details: what else it should say (the method, the calibration). Raises DachengError for a
    layout that can't hold them."""
    if layout not in LAYOUTS:
        raise DachengError(
            "there is no such layout", field="layout", value=layout, remedy="one of " + ", ".join(LAYOUTS)
        )
    if layout == "compressed-tensors":
        from dacheng.formats.compressed_tensors import compressed

        return compressed(tensors, stored)
    found, kinds = {}, {}
    for name, value in tensors.items():
        if name not in stored:
            found[name] = value
            continue
        kind, parts = _parts(stored[name])
        kinds[name] = kind
        found |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    about = {key: value for key, value in details.items() if value is not None}
    return found, {"quant_method": METHOD, "version": VERSION, **about, "tensors": kinds}


def unpacked_tensors(
    tensors: Mapping[str, Tensor], config: Any, family: Layout, keep: bool, where: Path, notes: list[str]
) -> dict[str, Tensor | QTensor | LowRankTensor]:
    """The opposite: matrices as floats, or with `keep` in the blocks that kernels take where their codes fit them; a
    note counts those that don't. Raises DamagedFile and DachengError naming what is not understood."""
    method = config.get("quant_method") if isinstance(config, dict) else None
    stored: Mapping[str, Stored]
    if method == METHOD:
        stored, rest = _read_ours(dict(tensors), config, where)
    elif method == "compressed-tensors":
        from dacheng.formats.compressed_tensors import decompressed

        stored, rest = decompressed(dict(tensors), config, where)
    else:
        raise DachengError(
            f"{where}: weights quantised like that are not read", field=f"{FIELD}.quant_method", value=method,
            remedy=f"supported: {METHOD}, compressed-tensors, and GGUF files",
        )  # fmt: skip
    # Vectors are copied: a view of the mapped file would keep all of its pages, which nobody reads again.
    found: dict[str, Tensor | QTensor | LowRankTensor] = {
        name: value.clone() if value.ndim < 2 else value for name, value in rest.items()
    }
    floats: dict[str, list[str]] = {}
    plain = type(family).import_tensors is Layout.import_tensors
    for name, value in stored.items():
        reason = "" if keep else "-"
        if keep and not plain:
            reason = "the family fuses, stacks or transposes its matrices"
        elif keep:
            reason = _why_floats(value)
        if reason:
            floats.setdefault(reason, []).append(name)
            found[name] = value.dequantize()
        else:
            assert not isinstance(value, FP8Tensor | SparseTensor)
            found[name] = value if isinstance(value, LowRankTensor) else value.to_blocks()
    for reason, names in floats.items():
        if reason != "-":
            notes.append(f"{len(names)} packed matrices are dequantised, {names[0]} among them: {reason}")
    return found


def _why_floats(value: Stored) -> str:
    if isinstance(value, FP8Tensor):
        return "eight-bit floats are emulated"
    if isinstance(value, SparseTensor):
        return "zeros are left out on disk only"
    if isinstance(value, LowRankTensor):
        return ""
    return "" if isinstance(value, NF4Tensor) else value.why_no_blocks()


# --- our layout -------------------------------------------------------------------------------------------------------
def _parts(value: Stored) -> tuple[dict[str, Any], dict[str, Tensor]]:
    shape = list(value.shape)
    if isinstance(value, IntTensor):
        spec = value.spec
        kind = {"kind": "int", "bits": spec.bits, "group": spec.group, "symmetric": spec.symmetric, "shape": shape}
        parts = {"codes": pack_bits(value.codes, spec.bits), "scale": value.scale}
        if value.zero is not None:
            parts["zero"] = pack_bits(value.zero, spec.bits)
        return kind, parts
    if isinstance(value, NF4Tensor):
        parts = {"codes": value.codes, "absmax": value.absmax}
        if value.levels is not None and value.offset is not None:
            parts |= {"levels": value.levels, "offset": value.offset}
        return {"kind": "nf4", "double": value.levels is not None, "shape": shape}, parts
    if isinstance(value, SparseTensor):
        return {"kind": "sparse", "shape": shape}, {"values": value.values, "bitmask": value.bitmask}
    if isinstance(value, LowRankTensor):
        return {"kind": "low_rank", "shape": shape}, {"a": value.a, "b": value.b}
    return {"kind": "fp8", "shape": shape}, {"codes": value.values, "scale": value.scale}


def _read_ours(
    tensors: dict[str, Tensor], config: Mapping[str, Any], where: Path
) -> tuple[dict[str, Stored], dict[str, Tensor]]:
    if config.get("version") != VERSION:
        raise DachengError(f"{where} was packed by another dacheng", field=f"{FIELD}.version",
                           value=config.get("version"), remedy="pip install -U dacheng")  # fmt: skip
    kinds = config.get("tensors")
    if not isinstance(kinds, dict):
        raise DamagedFile(
            f"{where}: it doesn't say what is packed", field=f"{FIELD}.tensors", value=kinds, remedy=_AGAIN
        )
    found = {}
    for name, kind in kinds.items():
        parts = {
            key.rpartition(".")[2]: tensors.pop(key) for key in [k for k in tensors if k.rpartition(".")[0] == name]
        }
        try:
            found[name] = _restored(kind, parts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedFile(f"{where}: {name} is not what it says it is ({error})", field=name, value=kind,
                              remedy=_AGAIN) from None  # fmt: skip
        except DachengError as error:
            raise DamagedFile(f"{where}: {name}: {error.problem}", field=name, value=error.value,
                              remedy=_AGAIN) from None  # fmt: skip
    return found, tensors


def _restored(kind: Mapping[str, Any], parts: dict[str, Tensor]) -> Stored:
    """Raises what `_read_ours` catches for parts that are not those of the kind."""
    rows, width = kind["shape"]
    if type(rows) is not int or type(width) is not int or min(rows, width) < 1 or rows * width > _LARGEST:
        raise ValueError(f"a matrix has two sizes and at most {_LARGEST} numbers")
    if foreign := parts.keys() - _PARTS_OF.get(kind["kind"], set()):
        raise ValueError(f"a part {min(foreign)!r} that is none of its kind")
    if kind["kind"] == "int":
        names = {dtype: name for name, dtype in SCALE_DTYPES.items()}
        spec = QSpec(kind["bits"], kind["group"], bool(kind["symmetric"]), names[parts["scale"].dtype])
        groups = 1 if spec.group == "tensor" else width // spec.columns(width)
        shape = (1, 1) if spec.group == "tensor" else (rows, groups)
        _expect(parts["codes"], (rows, row_bytes(width, spec.bits)), torch.uint8)
        _expect(parts["scale"], shape, parts["scale"].dtype)
        zero = None
        if not spec.symmetric:
            _expect(parts["zero"], (shape[0], row_bytes(shape[1], spec.bits)), torch.uint8)
            zero = unpack_bits(parts["zero"], spec.bits, shape[1])
        return IntTensor(spec, unpack_bits(parts["codes"], spec.bits, width), parts["scale"], zero)
    if kind["kind"] == "nf4":
        blocks, rest = divmod(width, BLOCK)
        if rest:
            raise ValueError(f"rows of {width} are no whole blocks of {BLOCK}")
        blocks *= rows
        _expect(parts["codes"], (blocks, BLOCK // 2), torch.uint8)
        _expect(parts["absmax"], (blocks,), torch.uint8 if kind["double"] else torch.float32)
        if kind["double"]:
            _expect(parts["levels"], (-(-blocks // ABSMAX_BLOCK),), torch.float32)
            _expect(parts["offset"], (), torch.float32)
        more = (parts["levels"], parts["offset"]) if kind["double"] else (None, None)
        return NF4Tensor(torch.Size((rows, width)), parts["codes"], parts["absmax"], *more)
    if kind["kind"] == "fp8":
        _expect(parts["scale"], (rows, 1), torch.float32)
        if parts["codes"].dtype not in FP8_DTYPES.values() or tuple(parts["codes"].shape) != (rows, width):
            raise ValueError("codes are no eight-bit floats of this shape")
        return FP8Tensor(parts["codes"], parts["scale"])
    if kind["kind"] == "sparse":
        if parts["values"].ndim != 1 or not parts["values"].is_floating_point():
            raise ValueError("values are a row of floats")
        _expect(parts["bitmask"], (rows, row_bytes(width, 1)), torch.uint8)
        sparse = SparseTensor(torch.Size((rows, width)), parts["values"], parts["bitmask"])
        sparse.places()
        return sparse
    if kind["kind"] == "low_rank":
        rank = parts["a"].shape[0]
        if not parts["a"].is_floating_point() or not 1 <= rank <= min(rows, width):
            raise ValueError("no factors of such a matrix")
        _expect(parts["a"], (rank, width), parts["a"].dtype)
        _expect(parts["b"], (rows, rank), parts["a"].dtype)
        return LowRankTensor(parts["a"], parts["b"])
    raise ValueError(f"there is no kind {kind['kind']!r}")


def _expect(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(f"expected {dtype} {list(shape)}, found {tensor.dtype} {list(tensor.shape)}")
