"""A model into a GGUF file that llama.cpp loads."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats.atomic import replacing_file
from dacheng.formats.gguf.architecture import EMBEDDING, HEAD, Architecture, Value
from dacheng.formats.gguf.architectures import architecture_for
from dacheng.formats.gguf.encode import encode_header, padding
from dacheng.formats.gguf.file import GGUFFile
from dacheng.formats.gguf.keys import Keys
from dacheng.formats.gguf.llama import head_dim_of, rope_of
from dacheng.formats.gguf.rope import FREQS, llama3_factors
from dacheng.ops.block_formats import FORMATS, BlockFormat, byte_shape
from dacheng.ops.qtensor import QTensor
from dacheng.ops.quantize import largest, quantize

if TYPE_CHECKING:
    from dacheng.text import Tokenizer

# Our name -> blocks, and llama.cpp's number for a file of mostly these (llama_ftype).
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "bf16": 32}
_UNUSED = 5  # llama.cpp's type of a token that no text becomes


@dataclass(frozen=True, slots=True)
class _Planned:
    """One tensor to be: where its values come from, and what they are stored as."""

    name: str
    source: str
    format: BlockFormat
    shape: tuple[int, ...]
    value: Value
    kept: bool = False  # its bytes are those of `value`

    @property
    def size(self) -> int:
        return math.prod(byte_shape(self.shape, self.format))


def write_gguf(
    path: Path | str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Value],
    tokenizer: Tokenizer | Mapping[str, Any] | None = None,
    chat_template: str | None = None,
    format: str = "q8_0",
    *,
    name: str | None = None,
    keep_blocks: bool = False,
) -> list[str]:
    """Writes the file beside `path`, then renames. Returns notes on what is not stored as asked.

    config: as config.json says it; tensors: under the names of that family, of any float dtype, or packed. tokenizer:
    ours, or its keys already. format: of matrices; vectors are float32, and with q4_* a head (or the embedding that is
    one) is Q8_0, which llama.cpp's own quantiser does likewise. One tensor is in memory at a time. keep_blocks: packed
    tensors are written with the bytes that they have, and other matrices as F16.

    At the end the file is read again, and must give the same traits. Raises DachengError for a family that is not
    written, for what would be lost, for values that do not fit, and when the disk is too full.
    """
    path = Path(path)
    if format not in _FILE_TYPES:
        raise DachengError(
            "this is not written to GGUF", field="format", value=format, remedy="one of " + ", ".join(_FILE_TYPES)
        )
    architecture = architecture_for(config)
    planned, notes = _plan(architecture, config, tensors, format, keep_blocks)
    metadata = _metadata(architecture, config, format, name)
    metadata |= _vocabulary(tokenizer, chat_template, config, notes)
    layout, offset = [], 0
    for item in planned:
        layout.append((item.name, item.format, item.shape, offset))
        offset += item.size + padding(item.size)
    head = encode_header(metadata, layout)
    _check_space(path, len(head) + offset)
    with replacing_file(path) as file:
        file.write(head)
        for item in planned:
            _write_tensor(file, item, architecture, config)
        file.flush()
        _check_readable(Path(file.name), config, architecture)
    return notes


# --- what goes in -----------------------------------------------------------------------------------------------------
def _plan(
    architecture: Architecture, config: Mapping[str, Any], tensors: Mapping[str, Value], format: str, keep: bool = False
) -> tuple[list[_Planned], list[str]]:
    planned, uneven, notes = [], [], []
    for source, value in tensors.items():
        name = architecture.names.ours(source)
        if name is None:
            raise DachengError(
                f"GGUF's {architecture.name} has no name for this tensor", field=source, value=list(value.shape),
                remedy="export to another format",
            )  # fmt: skip
        if name == HEAD and config.get("tie_word_embeddings"):
            raise DachengError(
                "the config ties the head to the embedding, and there is a head", field=source,
                value=list(value.shape), remedy="leave it out, or set tie_word_embeddings to false",
            )  # fmt: skip
        if keep:
            packed = value.format if isinstance(value, QTensor) else FORMATS["F32" if value.ndim < 2 else "F16"]
            planned.append(_Planned(name, source, packed, tuple(value.shape), value, isinstance(value, QTensor)))
            continue
        chosen = _format_of(name, value, format, bool(config.get("tie_word_embeddings")))
        if value.shape[-1] % chosen.values:
            uneven.append(name)
            chosen = FORMATS["F16"]
        planned.append(_Planned(name, source, chosen, tuple(value.shape), value))
    rope = rope_of(config)
    if rope.get("rope_type", rope.get("type")) == "llama3":
        factors = llama3_factors(rope, head_dim_of(config))
        planned.append(_Planned(FREQS, "", FORMATS["F32"], tuple(factors.shape), factors))
    if uneven:
        notes.append(f"{len(uneven)} matrices are F16: their rows are no multiple of 32 ({uneven[0]} is one)")
    if format.startswith("q4") and not keep:
        notes.append("the head is Q8_0: it suffers most from four bits")
    return planned, notes


def _format_of(name: str, value: Value, format: str, tied: bool) -> BlockFormat:
    if value.ndim < 2:
        return FORMATS["F32"]
    is_head = name == HEAD or (tied and name == EMBEDDING)
    return FORMATS["Q8_0" if is_head and format.startswith("q4") else format.upper()]


def _metadata(architecture: Architecture, config: Mapping[str, Any], format: str, name: str | None) -> dict[str, Any]:
    keys = {f"{architecture.name}.{key}": value for key, value in architecture.metadata(config).items()}
    about = {"general.architecture": architecture.name, "general.type": "model"}
    if name is not None:
        about["general.name"] = name
    return {**about, **keys, "general.file_type": _FILE_TYPES[format], "general.quantization_version": 2}


def _vocabulary(
    tokenizer: Tokenizer | Mapping[str, Any] | None,
    chat_template: str | None,
    config: Mapping[str, Any],
    notes: list[str],
) -> dict[str, Any]:
    """The tokenizer's keys, the list of tokens filled up to the model's vocabulary: llama.cpp compares the two."""
    if tokenizer is None:
        notes.append("there is no tokenizer in the file: llama.cpp will not take text")
        return {"tokenizer.ggml.model": "none"}
    if isinstance(tokenizer, Mapping):
        keys = dict(tokenizer)
    else:
        from dacheng.text import gguf_metadata_of

        keys = gguf_metadata_of(tokenizer)
    tokens, size = list(keys.get("tokenizer.ggml.tokens", [])), config["vocab_size"]
    missing = size - len(tokens)
    if missing < 0:
        raise DachengError(
            f"the tokenizer has {len(tokens)} tokens and the model {size}", field="vocab_size", value=size,
            remedy="export the tokenizer that the model was trained with",
        )  # fmt: skip
    if missing:
        notes.append(f"{missing} rows of the embedding have no token: named [PAD…]")
        fill: dict[str, list[Any]] = {
            "tokens": [f"[PAD{i}]" for i in range(len(tokens), size)],
            "token_type": [_UNUSED] * missing,
            "scores": [-1000.0] * missing,
        }
        for key, rest in fill.items():
            if (full := f"tokenizer.ggml.{key}") in keys:
                keys[full] = list(keys[full]) + rest
    if chat_template is not None:
        keys["tokenizer.chat_template"] = chat_template
    return keys


# --- bytes ------------------------------------------------------------------------------------------------------------
def _write_tensor(file: BinaryIO, item: _Planned, architecture: Architecture, config: Mapping[str, Any]) -> None:
    if item.kept:
        assert isinstance(item.value, QTensor)
        data = _kept_blocks(item.value, item.source, architecture, config)
        file.write(data.numpy().data)
        file.write(b"\0" * padding(data.numel()))
        return
    value = item.value.dequantize() if isinstance(item.value, QTensor) else item.value.detach().cpu()
    if item.source:
        value = architecture.export(item.source, value, config)
    _refuse_unfit(item, value)
    data = quantize(value, item.format).contiguous().reshape(-1)
    file.write(data.numpy().data)
    file.write(b"\0" * padding(data.numel()))


def _kept_blocks(value: QTensor, source: str, architecture: Architecture, config: Mapping[str, Any]) -> Tensor:
    """The bytes, rows in the order that llama.cpp wants them. Raises DachengError where it wants more than an order."""
    rows = torch.arange(value.shape[0]).unsqueeze(1)
    order = architecture.export(source, rows, config)
    if order.shape != rows.shape or not torch.equal(order.sort(0).values, rows):
        raise DachengError(
            f"GGUF's {architecture.name} changes the values of this matrix", field=source, value=list(value.shape),
            remedy="export the floats",
        )  # fmt: skip
    return value.select_rows(order.squeeze(1)).blocks().contiguous().reshape(-1)


def _refuse_unfit(item: _Planned, value: Tensor) -> None:
    """What is not finite would spoil a block, or become so in it."""
    low, high = (bound.item() for bound in value.aminmax())
    size = max(-low, high)
    if not math.isfinite(low + high) or size > largest(item.format):
        raise DachengError(
            f"the values do not fit {item.format.name}", field=item.source or item.name, value=size,
            remedy="export as bf16 or f32, whose range is wider",
        )  # fmt: skip


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise DachengError(
            f"{path} needs {needed} bytes and the disk has {free}", field="disk", value=str(path.parent),
            remedy="free space, or write to another disk",
        )  # fmt: skip


def _check_readable(path: Path, config: Mapping[str, Any], architecture: Architecture) -> None:
    """Whether the file says all that the config says: both must give the same traits."""
    from dacheng.formats.huggingface.families import family_of_config

    file = GGUFFile(path)
    back = architecture.config(Keys(file.metadata, path), file)
    asked, _ = family_of_config(config, Path("config.json")).read(config, Path("config.json"))
    found, _ = family_of_config(back, path).read(back, path)
    for field in dataclasses.fields(asked):
        one, other = getattr(asked, field.name), getattr(found, field.name)
        # what only training looks at, and what the tensors say themselves
        if field.name not in ("initializer_range", "tied_head") and not _alike(one, other):
            raise DachengError(
                f"GGUF's {architecture.name} would hold {field.name} as {other!r}", field=field.name, value=one,
                remedy="export to another format",
            )  # fmt: skip


def _alike(one: Any, other: Any) -> bool:
    """Equal, numbers to single precision."""
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-6)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if dataclasses.is_dataclass(one) and dataclasses.is_dataclass(other) and not isinstance(one, type):
        return _alike(dataclasses.asdict(one), dataclasses.asdict(other))  # type: ignore[arg-type]
    return one == other
