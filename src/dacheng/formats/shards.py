"""The weights of a model directory: one safetensors file, or several with an index that names them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dacheng.errors import DachengError, DamagedFile
from dacheng.formats.json_files import read_json, write_json
from dacheng.formats.safetensors_header import read_header
from dacheng.formats.safetensors_io import read_tensors, write_tensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(directory: Path) -> dict[str, list[str]]:
    """File name -> names of its tensors, from the index or the one file's header.

    Raises DamagedFile when the index names a file outside the directory or disagrees with the files' headers, and
    DachengError when there are no safetensors weights, or two sets of them.
    """
    single, index = directory / WEIGHTS, directory / INDEX
    if not index.exists():
        if not single.exists():
            raise _no_weights(directory)
        return {WEIGHTS: list(read_header(single).tensors)}
    files = _read_index(index)
    if single.exists() and WEIGHTS not in files:
        raise DachengError(
            f"{directory} has two sets of weights",
            field="files",
            value=[WEIGHTS, INDEX],
            remedy=f"remove {WEIGHTS}, or {INDEX} and the files it names",
        )
    for file, names in files.items():
        found = set(read_header(directory / file).tensors)
        if found != set(names):
            name = min(found.symmetric_difference(names))
            raise DamagedFile(
                f"{index} and {file} disagree: {name} is only in the {'file' if name in found else 'index'}",
                field=name,
                value=file,
                remedy="copy the index and all weight files again, from one source",
            )
    return files


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of the directory's weight files, mapped (see `read_tensors`)."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(directory):
        tensors |= read_tensors(directory / file)
    return tensors


def write_weights(
    directory: Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
) -> tuple[str, int]:
    """Writes `tensors` into one file, or, where they take more than `max_shard_bytes`, into several with an index, cut
    as transformers cuts them: in order, a new file when the next tensor would not fit. A tensor that is larger by
    itself gets a file of its own.

    Returns (hash, bytes): the one file's SHA-256, or that of the list of the shards' (as provenance.weights_hash).
    Raises what `write_tensors` raises.
    """
    groups = _grouped(tensors, dtype, max_shard_bytes)
    if len(groups) == 1:
        digest = write_tensors(directory / WEIGHTS, tensors, {"format": "pt"}, dtype=dtype)
        return digest, (directory / WEIGHTS).stat().st_size
    listing, total = "", 0
    index: dict[str, str] = {}
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        part = {name: tensors[name] for name in names}
        listing += f"{write_tensors(directory / file, part, {'format': 'pt'}, dtype=dtype)}  {file}\n"
        total += (directory / file).stat().st_size
        index |= dict.fromkeys(names, file)
    size = sum(_stored_bytes(tensor, dtype) for tensor in tensors.values())
    write_json(directory / INDEX, {"metadata": {"total_size": size}, "weight_map": index})
    return hashlib.sha256(listing.encode()).hexdigest(), total


def _grouped(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, most: int | None) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        size = _stored_bytes(tensor, dtype)
        if most is not None and groups[-1] and filled + size > most:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _stored_bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    stored = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.numel() * stored.itemsize


def _read_index(path: Path) -> dict[str, list[str]]:
    remedy = "copy the index and all weight files again, from one source"
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise DamagedFile(f"{path} names no weights", field="weight_map", value=names, remedy=remedy)
    files: dict[str, list[str]] = {}
    for name, file in names.items():
        # A plain name only: an index must not reach out of its directory.
        if not isinstance(file, str) or not file.endswith(".safetensors") or file != Path(file).name or "\\" in file:
            raise DamagedFile(
                f"{path}: weights are files of this directory that end in .safetensors",
                field=name,
                value=file,
                remedy=remedy,
            )
        files.setdefault(file, []).append(name)
    return files


def _no_weights(directory: Path) -> DachengError:
    others = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".gguf", ".ckpt"))
    if others:
        return DachengError(
            f"{directory} has no safetensors weights",
            field="files",
            value=others,
            remedy="convert them to safetensors with the program that wrote them: pickled weights are never loaded",
        )
    return DachengError(
        f"{directory} has no weights", field="file", value=WEIGHTS, remedy="copy the weight files beside config.json"
    )
