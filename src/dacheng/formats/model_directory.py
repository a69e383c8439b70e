"""A model as a directory: config.json, model.safetensors, the tokenizer's files, generation_config.json, and
dacheng.json, which says where the model came from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dacheng.errors import DachengError
from dacheng.formats import provenance as origin
from dacheng.formats.atomic import replacing_directory
from dacheng.formats.dtypes import as_dtype, dtype_name
from dacheng.formats.huggingface.families import family_of_traits
from dacheng.formats.huggingface.family import Layout
from dacheng.formats.json_files import write_json
from dacheng.formats.loading import (
    CONFIG,
    GENERATION,
    LoadedModel,
    existing_directory,
    load_model,
    load_tokenizer,
    without_memory,
)
from dacheng.formats.packed import FIELD as QUANTIZATION
from dacheng.formats.packed import Stored, packed_tensors
from dacheng.formats.safetensors_io import refuse_overflow
from dacheng.formats.shards import write_weights
from dacheng.formats.tensors import check_tensors
from dacheng.models.decoder import Decoder

if TYPE_CHECKING:
    from dacheng.text import Tokenizer

__all__ = ["LoadedModel", "existing_directory", "load_model", "load_tokenizer", "save_model"]

# Files that a save replaces or removes; whatever else is in the directory stays there.
_OURS = (
    CONFIG, GENERATION, origin.FILE, "model*.safetensors", "model*.safetensors.index.json", "tokenizer*.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.*", "additional_chat_templates", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "modules.json", "1_Pooling", "sentence_bert_config.json",
)  # fmt: skip


def save_model(
    directory: Path | str,
    model: Decoder,
    tokenizer: Tokenizer | None = None,
    *,
    generation: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_bytes: int | None = None,
    packed: Mapping[str, Stored] | None = None,
    layout: str = "dacheng",
    quantization: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the whole directory beside its place and puts it there in one step; returns its path.

    The config is that of the family that the model was read as, else of the first one, that can express its traits
    without loss, so that transformers loads what has a counterpart there. `generation` goes into
    generation_config.json, the tokenizer's special ids with it. `provenance` (parent, recipe, data, metrics, ledger:
    see dacheng.formats.provenance) goes into dacheng.json. `dtype` casts the weights; None stores them as they are.
    max_shard_bytes: weights that take more go into several files with an index; None puts them into one.
    packed: by the model's names ("blocks.0.mlp.up.weight"), what stands in the place of these matrices, in the `layout`
    of dacheng.formats.packed; quantization: what the config should say of it besides.
    Files in an existing directory that are no part of a model stay. Raises DachengError when something cannot be
    stored, and leaves an existing directory as it was.
    """
    directory, dtype = Path(directory), as_dtype(dtype)
    traits = model.traits
    if tokenizer is not None and tokenizer.vocab_size > traits.vocab_size:
        raise DachengError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {traits.vocab_size}",
            field="vocab_size",
            value=tokenizer.vocab_size,
            remedy="save the tokenizer that the model was trained with",
        )
    family = family_of_traits(traits, model.family)
    state = model.state_dict()
    check_tensors(
        without_memory(family, traits).state_dict(), state, "the model", "merge or unwrap what was put around it"
    )
    special = _special_ids(tokenizer)
    record = origin.checked(provenance or {})
    stored = {dtype_name(dtype or tensor.dtype) for tensor in state.values()}
    config = family.from_traits(traits) | special | {"dtype": dtype_name(dtype or model.embed.weight.dtype)}
    try:
        with replacing_directory(directory) as staging:
            tensors = family.export_tensors(state, traits)
            if packed:
                stored_as = {family_name(family, name): value for name, value in packed.items()}
                tensors = {name: kept_floats(name, value, dtype) for name, value in tensors.items()}
                tensors, config[QUANTIZATION] = packed_tensors(tensors, stored_as, layout, quantization or {})
                dtype = None  # scales and codes are what they are
            digest, size = write_weights(staging, tensors, dtype=dtype, max_shard_bytes=max_shard_bytes)
            write_json(staging / CONFIG, config)
            write_json(
                staging / GENERATION, {k: v for k, v in special.items() if v is not None} | dict(generation or {})
            )
            if tokenizer is not None:
                tokenizer.save(staging)
            weights = {"sha256": digest, "bytes": size, "dtype": "+".join(sorted(stored))}
            fingerprint = None if tokenizer is None else tokenizer.fingerprint
            origin.write(staging, record, weights=weights, tokenizer=fingerprint)
            keep_others(directory, staging)
    except OSError as error:
        raise DachengError(
            f"cannot write {directory}: {error.strerror or error}",
            field="directory",
            value=str(directory),
            remedy="free space there, or choose a folder on a disk that can be written",
        ) from error
    return directory


def _special_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """As config.json wants them: null where there is none, because transformers fills what is absent with 1 and 2."""
    return {
        "bos_token_id": None if tokenizer is None else tokenizer.bos_id,
        "eos_token_id": None if tokenizer is None else tokenizer.eos_id,
        "pad_token_id": None if tokenizer is None else tokenizer.pad_id,
    }


def kept_floats(name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """What stays floats beside packed matrices: vectors, which weigh nothing, lose nothing."""
    if dtype is None or value.ndim < 2 or not value.is_floating_point():
        return value
    refuse_overflow(name, value.detach(), dtype)
    return value.to(dtype)


def family_name(family: Layout, name: str) -> str:
    """What the family calls a matrix that it stores by itself. Raises DachengError where it fuses, stacks or transposes
    them."""
    found = family.names.theirs(name) if type(family).export_tensors is Layout.export_tensors else None
    if found is None:
        raise DachengError(
            f"{family.model_type} does not store this matrix by itself", field=name, value=family.model_type,
            remedy="write it as GGUF, or keep this model's floats",
        )  # fmt: skip
    return found


def keep_others(old: Path, staging: Path) -> None:
    """Links what is in `old` and no part of a model (a report, a log someone still appends to) into the new one."""
    if not old.is_dir():
        return
    for entry in sorted(old.iterdir()):
        if any(fnmatchcase(entry.name, pattern) for pattern in _OURS):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, staging / entry.name, symlinks=True, copy_function=_link)
        else:
            _link(entry, staging / entry.name)


def _link(source: Path | str, target: Path | str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target, follow_symlinks=False)
