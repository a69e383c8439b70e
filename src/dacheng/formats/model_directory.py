"""A model as a directory: config.json, model.safetensors, the tokenizer's files, generation_config.json, and
dacheng.json, which says where the model came from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from dacheng.errors import DachengError
from dacheng.formats import provenance as origin
from dacheng.formats.atomic import replacing_directory
from dacheng.formats.dtypes import as_dtype, dtype_name
from dacheng.formats.huggingface.families import family_of_config, family_of_traits
from dacheng.formats.huggingface.family import Family
from dacheng.formats.json_files import read_json, write_json
from dacheng.formats.meta import on_meta
from dacheng.formats.safetensors_io import write_tensors
from dacheng.formats.shards import WEIGHTS, read_weights
from dacheng.formats.tensors import check_tensors
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits

if TYPE_CHECKING:
    from dacheng.text import Tokenizer

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer.json"
# Files that a save replaces or removes; whatever else is in the directory stays there.
_OURS = (
    CONFIG, GENERATION, origin.FILE, "model*.safetensors", "model*.safetensors.index.json", "tokenizer*.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.*", "additional_chat_templates", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip


@dataclass(slots=True)
class LoadedModel:
    """What a directory holds. `notes` are things to show the user: fields taken as off, tensors left aside."""

    model: Decoder
    tokenizer: Tokenizer | None
    provenance: dict[str, Any]
    generation: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def save_model(
    directory: Path | str,
    model: Decoder,
    tokenizer: Tokenizer | None = None,
    *,
    generation: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
) -> Path:
    """Writes the whole directory beside its place and puts it there in one step; returns its path.

    The config is that of the first family that can express the model's traits without loss, so that transformers
    loads what has a counterpart there. `generation` goes into generation_config.json, the tokenizer's special ids with
    it. `provenance` (parent, recipe, data, metrics, ledger: see dacheng.formats.provenance) goes into dacheng.json.
    `dtype` casts the weights; None stores them as they are. Files in an existing directory that are no part of a model
    stay. Raises DachengError when something cannot be stored, and leaves an existing directory as it was.
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
    family = family_of_traits(traits)
    state = model.state_dict()
    check_tensors(_on_meta(family, traits).state_dict(), state, "the model", "merge or unwrap what was put around it")
    special = _special_ids(tokenizer)
    record = origin.checked(provenance or {})
    stored = {dtype_name(dtype or tensor.dtype) for tensor in state.values()}
    config = family.from_traits(traits) | special | {"dtype": dtype_name(dtype or model.embed.weight.dtype)}
    try:
        with replacing_directory(directory) as staging:
            digest = write_tensors(
                staging / WEIGHTS, family.export_tensors(state, traits), {"format": "pt"}, dtype=dtype
            )
            write_json(staging / CONFIG, config)
            write_json(
                staging / GENERATION, {k: v for k, v in special.items() if v is not None} | dict(generation or {})
            )
            if tokenizer is not None:
                tokenizer.save(staging)
            weights = {"sha256": digest, "bytes": (staging / WEIGHTS).stat().st_size, "dtype": "+".join(sorted(stored))}
            fingerprint = None if tokenizer is None else tokenizer.fingerprint
            origin.write(staging, record, weights=weights, tokenizer=fingerprint)
            _keep_others(directory, staging)
    except OSError as error:
        raise DachengError(
            f"cannot write {directory}: {error.strerror or error}",
            field="directory",
            value=str(directory),
            remedy="free space there, or choose a folder on a disk that can be written",
        ) from error
    return directory


def load_model(
    directory: Path | str,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    check_hash: bool = True,
) -> LoadedModel:
    """Reads a directory of any family in `huggingface.families`, in evaluation mode.

    Weights keep their stored dtype unless `dtype` is given. On the CPU, uncast weights stay mapped: the model takes no
    more memory than its file, and several processes share it. `check_hash` compares the weights with the hash in
    dacheng.json, where there is one (about a second for half a gigabyte). Raises DamagedFile on damaged files and
    DachengError naming the field or the tensor, what was expected and what was found.
    """
    directory = existing_directory(directory)
    dtype = as_dtype(dtype)
    config = read_json(directory / CONFIG)
    family = family_of_config(config, directory / CONFIG)
    traits, notes = family.read(config, directory / CONFIG)
    provenance = origin.read(directory)
    if check_hash:
        origin.check_weights(directory, provenance)
    model = _with_weights(directory, family, traits, dtype, torch.device(device), notes)
    tokenizer = load_tokenizer(directory) if (directory / TOKENIZER).exists() else None
    if tokenizer is None:
        notes.append(f"{directory} has no {TOKENIZER}: the model takes token ids only")
    elif tokenizer.vocab_size > traits.vocab_size:
        notes.append(f"the tokenizer has {tokenizer.vocab_size} tokens, the model takes only {traits.vocab_size}")
    return LoadedModel(model, tokenizer, provenance, _read_generation(directory, config), notes)


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """The tokenizer of a directory, which need not hold a model beside it. Raises DachengError when there is none."""
    directory = Path(directory)
    if not (directory / TOKENIZER).exists():
        raise DachengError(
            f"{directory} has no tokenizer", field="file", value=TOKENIZER, remedy="copy the tokenizer's files there"
        )
    from dacheng.text import Tokenizer

    return Tokenizer.load(directory)


def existing_directory(directory: Path | str) -> Path:
    """`directory` as a path. Raises DachengError when it is none, or holds no model."""
    directory = Path(directory)
    if (directory / CONFIG).is_file():
        return directory
    problem = (
        "holds no model" if directory.is_dir() else "is not a directory" if directory.exists() else "does not exist"
    )
    raise DachengError(
        f"{directory} {problem}",
        field="model",
        value=str(directory),
        remedy=f"name a directory with {CONFIG}, {WEIGHTS} and {TOKENIZER}",
    )


def _on_meta(family: Family, traits: DecoderTraits) -> Decoder:
    """The model without memory for its weights."""
    with on_meta():
        return family.build(traits)


def _with_weights(
    directory: Path,
    family: Family,
    traits: DecoderTraits,
    dtype: torch.dtype | None,
    device: torch.device,
    notes: list[str],
) -> Decoder:
    model = _on_meta(family, traits)
    expected = family.export_tensors(model.state_dict(), traits)
    found = read_weights(directory)
    for name in sorted(found.keys() - expected.keys()):
        if reason := family.redundant(name, found, traits):
            notes.append(f"{name} was left aside: {reason}")
            del found[name]
    check_tensors(expected, found, str(directory), "copy config.json and the weights again, from one source")
    state = family.import_tensors(found, traits)
    del found
    for name in state:  # one by one: cast, or moved, the whole is never there twice
        state[name] = state[name].to(device=device, dtype=dtype)
    model.load_state_dict(state, strict=True, assign=True)
    for module in model.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            cast(Any, module).rebuild(device)  # tables that follow from the traits are not stored
    return model.to(device).eval()


def _special_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """As config.json wants them: null where there is none, because transformers fills what is absent with 1 and 2."""
    return {
        "bos_token_id": None if tokenizer is None else tokenizer.bos_id,
        "eos_token_id": None if tokenizer is None else tokenizer.eos_id,
        "pad_token_id": None if tokenizer is None else tokenizer.pad_id,
    }


def _read_generation(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json; without one, the special ids that older writers put into config.json."""
    if (directory / GENERATION).exists():
        return read_json(directory / GENERATION)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}


def _keep_others(old: Path, staging: Path) -> None:
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
